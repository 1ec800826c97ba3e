"""What is read from /metrics, and how it is shown."""

import io
import time
from dataclasses import replace

from rich.console import Console

from embedkeep_operator.counts import Counts, counts, total
from embedkeep_operator.local import view
from embedkeep_operator.local.observe import Sums, rates, read
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
NODE_SEEN = Counts(
    answers=True,
    lookups={"l1": 60, "valkey": 20, "coalesced": 10, "embedder": 10, "error": 3},
    entries={"l1": 7, "valkey": 9},
    bytes={"l1": 2048},
    evictions={"l1": 4},
    open_breakers=("valkey",),
    corrupt=2,
    saved_device_s=1.5,
    waiting_inputs=5,
)
EMBEDDER_SEEN = Counts(answers=True, spent_device_s={"demand": 0.25, "bulk": 0.5}, queued_inputs=3)
SEEN = replace(NODE_SEEN, spent_device_s={"demand": 0.25, "bulk": 0.5}, queued_inputs=3)


def test_metrics_are_read_whole() -> None:
    assert (counts(NODE), counts(EMBEDDER)) == (NODE_SEEN, EMBEDDER_SEEN)


def test_a_node_and_its_embedder_count_as_one_cache() -> None:
    assert total({"node": NODE_SEEN, "embedder": EMBEDDER_SEEN}) == SEEN


def test_several_nodes_are_added_up_and_what_ails_one_names_it() -> None:
    other = Counts(
        answers=True, lookups={"l1": 1, "error": 1}, entries={"valkey": 1}, saved_device_s=0.5
    )

    both = total({"node-0": NODE_SEEN, "node-1": other, "embedder": EMBEDDER_SEEN})

    assert both == replace(
        SEEN,
        lookups={"l1": 61, "valkey": 20, "coalesced": 10, "embedder": 10, "error": 4},
        entries={"l1": 7, "valkey": 10},
        saved_device_s=2.0,
        open_breakers=("valkey of node-0",),
    )


def test_a_cache_answers_when_all_of_it_does() -> None:
    assert not total({"node": NODE_SEEN, "embedder": Counts()}).answers


def test_inputs_that_failed_are_no_answers() -> None:
    assert (SEEN.answered, SEEN.hit_ratio) == (100, 0.9)


def test_what_another_node_had_is_a_hit() -> None:
    seen = Counts(lookups={"peer": 3, "embedder": 1})
    screen = io.StringIO()

    Console(file=screen, width=120).print(view.tiers(seen, {}))

    assert (seen.answered, seen.hit_ratio) == (4, 0.75)
    assert "another node" in screen.getvalue()


def test_nothing_asked_is_no_ratio_of_zero() -> None:
    assert counts("").hit_ratio is None


async def test_processes_that_do_not_answer_count_nothing() -> None:
    gone = "http://127.0.0.1:1/metrics"

    assert await read({"node": gone, "embedder": gone}) == {
        "node": Counts(), "embedder": Counts()
    }  # fmt: skip


def test_rates_are_inputs_a_second() -> None:
    before = Counts(lookups={"l1": 10, "embedder": 4})
    now = Counts(lookups={"l1": 30, "embedder": 4, "valkey": 5})

    assert rates(before, now, over_s=2) == {"l1": 10, "embedder": 0, "valkey": 2.5}


def looked(*, l1: float, saved: float, spent: float) -> dict[str, Counts]:
    """What a node and the embedder say."""
    return {
        "node-0": Counts(
            answers=True, lookups={"l1": l1}, entries={"l1": l1}, saved_device_s=saved
        ),
        "embedder": Counts(answers=True, spent_device_s={"demand": spent}),
    }


def test_sums_go_on_over_restarts() -> None:
    sums = Sums()
    for each in (looked(l1=100, saved=5, spent=3), looked(l1=110, saved=6, spent=4)):
        sums.add(each)

    after = sums.add(looked(l1=6, saved=1, spent=0.5))

    assert after.lookups == {"l1": 116}
    assert (after.saved_device_s, after.spent_device_s) == (7, {"demand": 4.5})
    assert after.entries == {"l1": 6}, "what is held is no sum"


def test_one_node_of_several_starts_anew_and_the_sum_goes_on() -> None:
    """The sum of both never falls here: only each on its own shows the restart."""
    sums = Sums()
    sums.add({"node-0": counted(100), "node-1": counted(10)})

    after = sums.add({"node-0": counted(5), "node-1": counted(200)})

    assert after.lookups == {"l1": 100 + 5 + 200}


def counted(l1: float) -> Counts:
    """What a node says."""
    return Counts(answers=True, lookups={"l1": l1})


def test_a_process_that_is_silent_for_a_while_is_not_counted_twice() -> None:
    sums = Sums()
    sums.add(looked(l1=100, saved=5, spent=3))

    silent = sums.add({"node-0": Counts(), "embedder": Counts()})
    again = sums.add(looked(l1=103, saved=6, spent=4))

    assert (silent.lookups, silent.saved_device_s, silent.spent_device_s) == (
        {"l1": 100}, 5, {"demand": 3}
    )  # fmt: skip
    assert silent.entries == {}, "nobody knows what is held now"
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


UPSTREAM = """\
embedkeep_upstream_tokens_total{purpose="demand"} 3000000
embedkeep_upstream_tokens_total{purpose="canaries"} 1000000
"""


def test_tokens_of_an_upstream_are_shown_and_money_where_there_is_a_price() -> None:
    node = counts("embedkeep_saved_tokens_total 6000000\n")
    price = "embedkeep_upstream_price_per_million_tokens 0.25\n"

    priced = total({"node": node, "embedder": counts(UPSTREAM + price)})
    free = total({"node": node, "embedder": counts(UPSTREAM)})

    assert (priced.money, free.money) == ((1.5, 1.0), None)
    assert "tokens: spent 4,000,000, saved 6,000,000; money: spent 1.000000, saved 1.500000" in (
        view.line(priced, {})
    )
    assert "money" not in view.line(free, {})
    assert "tokens" not in view.line(SEEN, {}), "nobody counts them where the model runs here"


def test_tokens_go_on_over_restarts_too() -> None:
    sums = Sums()
    for spent in (5, 9):
        sums.add({"one": with_tokens(spent)})

    after = sums.add({"one": with_tokens(2)})

    assert (after.saved_tokens, after.upstream_tokens) == (110, {"demand": 11})


def with_tokens(spent: float) -> Counts:
    return Counts(answers=True, saved_tokens=10 * spent, upstream_tokens={"demand": spent})


def test_sizes_are_for_people() -> None:
    assert [view.size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 GiB"
    ]  # fmt: skip
