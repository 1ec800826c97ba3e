"""What is read from /metrics, and how it is shown."""

import io
import time

from rich.console import Console

from embedkeep_operator.local import view
from embedkeep_operator.local.observe import Counts, Sums, counts, rates, read
from embedkeep_operator.local.supervisor import Event

NODE = """\
# TYPE embedkeep_lookups_total counter
embedkeep_lookups_total{result="l1"} 60
embedkeep_lookups_total{result="valkey"} 20
embedkeep_lookups_total{result="coalesced"} 10
embedkeep_lookups_total{result="embedder"} 10
embedkeep_lookups_total{result="error"} 3
# TYPE embedkeep_entries gauge
embedkeep_entries{tier="l1"} 7
embedkeep_entries{tier="valkey"} 9
# TYPE embedkeep_bytes gauge
embedkeep_bytes{tier="l1"} 2048
embedkeep_evictions_total{tier="l1"} 4
embedkeep_breaker_open{tier="valkey"} 1
embedkeep_corrupt_records_total 2
embedkeep_saved_device_seconds_total 1.5
embedkeep_pending_inputs 5
"""
EMBEDDER = """\
embedkeep_embed_device_seconds_total{purpose="demand"} 0.25
embedkeep_embed_device_seconds_total{purpose="bulk"} 0.5
embedkeep_embed_queue_inputs{purpose="demand"} 1
embedkeep_embed_queue_inputs{purpose="bulk"} 2
"""
SEEN = Counts(
    node_answers=True,
    embedder_answers=True,
    lookups={"l1": 60, "valkey": 20, "coalesced": 10, "embedder": 10, "error": 3},
    entries={"l1": 7, "valkey": 9},
    bytes={"l1": 2048},
    evictions={"l1": 4},
    open_breakers=("valkey",),
    corrupt=2,
    saved_device_s=1.5,
    spent_device_s={"demand": 0.25, "bulk": 0.5},
    waiting_inputs=5,
    queued_inputs=3,
)


def test_metrics_are_read_whole() -> None:
    assert counts(NODE, EMBEDDER) == SEEN


def test_inputs_that_failed_are_no_answers() -> None:
    assert (SEEN.answered, SEEN.hit_ratio) == (100, 0.9)


def test_nothing_asked_is_no_ratio_of_zero() -> None:
    assert counts("", "").hit_ratio is None


async def test_processes_that_do_not_answer_count_nothing() -> None:
    gone = "http://127.0.0.1:1/metrics"

    assert await read(gone, gone) == Counts()


def test_rates_are_inputs_a_second() -> None:
    before = Counts(lookups={"l1": 10, "embedder": 4})
    now = Counts(lookups={"l1": 30, "embedder": 4, "valkey": 5})

    assert rates(before, now, over_s=2) == {"l1": 10, "embedder": 0, "valkey": 2.5}


def looked(*, l1: float, saved: float, spent: float) -> Counts:
    """What both processes say."""
    return Counts(
        node_answers=True,
        embedder_answers=True,
        lookups={"l1": l1},
        entries={"l1": l1},
        saved_device_s=saved,
        spent_device_s={"demand": spent},
    )


def test_sums_go_on_over_restarts() -> None:
    sums = Sums()
    for each in (looked(l1=100, saved=5, spent=3), looked(l1=110, saved=6, spent=4)):
        sums.add(each)

    after = sums.add(looked(l1=6, saved=1, spent=0.5))

    assert after.lookups == {"l1": 116}
    assert (after.saved_device_s, after.spent_device_s) == (7, {"demand": 4.5})
    assert after.entries == {"l1": 6}, "what is held is no sum"


def test_a_process_that_is_silent_for_a_while_is_not_counted_twice() -> None:
    sums = Sums()
    sums.add(looked(l1=100, saved=5, spent=3))

    silent = sums.add(Counts())
    again = sums.add(looked(l1=103, saved=6, spent=4))

    assert (silent.lookups, silent.saved_device_s, silent.spent_device_s) == (
        {"l1": 100}, 5, {"demand": 3}
    )  # fmt: skip
    assert (again.lookups, again.saved_device_s, again.spent_device_s) == (
        {"l1": 103}, 6, {"demand": 4}
    )  # fmt: skip


def test_the_line_says_what_matters() -> None:
    assert view.line(SEEN, {"l1": 10, "embedder": 2}) == (
        "hits 90.0% of 100 | 12/s | entries: l1 7, valkey 9 | device: spent 0.8 s, saved 1.5 s"
        " | waiting 5 + 3 | left alone: valkey"
    )


def test_the_picture_shows_processes_tiers_books_and_events() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=120)

    console.print(
        view.picture(
            "embedkeep docs",
            [],
            SEEN,
            {"l1": 10},
            [Event(at=time.time(), process="node", message=f"event {n}") for n in range(20)],
            hint="Ctrl-C stops",
            now_s=0,
        )
    )

    shown = screen.getvalue()
    for part in ("embedkeep docs", "90.0%", "L1 (memory)", "60.0%", "2.0 KiB", "1.50 s", "valkey",
                 "0.50 s bulk, 0.25 s demand", "event 19"):  # fmt: skip
        assert part in shown
    assert "event 11" not in shown, "old events leave the screen"


def test_sizes_are_for_people() -> None:
    assert [view.size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 GiB"
    ]  # fmt: skip
