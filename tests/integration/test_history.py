"""What scripts do to a history in a real Valkey."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedkeep.history import (
    BUCKETS,
    TEXT_OVERHEAD_BYTES,
    Asked,
    Bucket,
    Fence,
    add_command,
    bucket_names,
    fence_name,
    forget_command,
    pack,
    plan_command,
    plan_name,
    read_bucket,
    read_commands,
    read_fence,
    shorten_commands,
)
from embedkeep.node.slots import slot_of
from support.valkey import Valkey, valkey

TAG = b"tag1"
OTHER = b"tag2"
RETENTION_S = 16_000
NOTHING_WITHDRAWN = Fence()
NOW_S = 4_000_000_000
"""Far ahead, so that nothing expires by the server's own clock."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey for all tests here."""
    with valkey(tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture
def empty(server: Valkey) -> Valkey:
    """The same, empty."""
    server.run(("FLUSHALL",))
    return server


def a_text(text: str) -> Asked:
    return Asked(prompt="query: ", text=text)


def add(
    server: Valkey,
    counts: Sequence[tuple[str, int]],
    *,
    tag: bytes = TAG,
    fence: Fence = NOTHING_WITHDRAWN,
    now_s: float = NOW_S,
    retention_s: int = RETENTION_S,
    max_texts: int = 1000,
    max_bytes: int = 1 << 20,
) -> object:
    (reply,) = server.run(
        add_command(
            tag,
            [(a_text(text), times) for text, times in counts],
            fence=fence,
            now_s=now_s,
            retention_s=retention_s,
            max_texts=max_texts,
            max_bytes=max_bytes,
        )
    )
    return reply


def history(server: Valkey, tag: bytes = TAG) -> tuple[Fence, list[Bucket]]:
    fence, *buckets = server.run(*read_commands(tag))
    read = (read_bucket(reply, place=place) for place, reply in enumerate(buckets))
    return read_fence(fence), [bucket for bucket in read if bucket is not None]


def counts(server: Valkey, tag: bytes = TAG) -> dict[str, tuple[int, int]]:
    """At least and at most so often, by text."""
    _, buckets = history(server, tag)
    return {
        count.asked.text: (count.least, count.most) for bucket in buckets for count in bucket.counts
    }


names = st.sampled_from([*"abcdefghijklmnop"])
streams = st.lists(st.lists(st.tuples(names, st.integers(1, 5)), max_size=10), max_size=20)
here = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@here
@given(streams, st.integers(1, 12))
def test_counts_bound_what_was_asked_and_who_is_asked_for_often_has_a_place(
    server: Valkey, stream: list[list[tuple[str, int]]], places: int
) -> None:
    """The promises of space-saving, over several nodes' batches."""
    server.run(("FLUSHALL",))
    true: Counter[str] = Counter()
    for batch in stream:
        add(server, batch, max_texts=places)
        for text, times in batch:
            true[text] += times

    found = counts(server)

    assert len(found) <= places
    assert all(least <= true[text] <= most for text, (least, most) in found.items())
    assert {text for text, times in true.items() if times > true.total() / places} <= found.keys()


@here
@given(streams, st.integers(130, 600))
def test_a_bucket_never_holds_more_bytes_than_it_may(
    server: Valkey, stream: list[list[tuple[str, int]]], room: int
) -> None:
    server.run(("FLUSHALL",))
    true: Counter[str] = Counter()
    long = {name: name * (ord(name) - 96) for name in "abcdefghijklmnop"}
    for batch in stream:
        add(server, [(long[text], times) for text, times in batch], max_bytes=room)
        for text, times in batch:
            true[long[text]] += times

    found = counts(server)

    held = sum(len(pack(a_text(text))) + TEXT_OVERHEAD_BYTES for text in found)
    assert held <= room or len(found) == 1
    assert all(least <= true[text] <= most for text, (least, most) in found.items())


def test_a_text_outlives_its_retention_in_no_bucket(empty: Valkey) -> None:
    add(empty, [("hello", 1)])

    (name,) = [name for name in bucket_names(TAG) if empty.run(("EXISTS", name)) == [1]]
    (expires_at_s,) = empty.run(("EXPIRETIME", name))
    assert isinstance(expires_at_s, int)
    assert NOW_S + RETENTION_S * (BUCKETS - 1) / BUCKETS <= expires_at_s <= NOW_S + RETENTION_S


def test_a_place_in_the_ring_is_empty_when_its_turn_comes_again(empty: Valkey) -> None:
    """Also where the server's clock has not let it expire."""
    add(empty, [("old", 5)])
    add(empty, [("new", 1)], now_s=NOW_S + RETENTION_S)

    assert counts(empty) == {"new": (1, 1)}


def test_a_clock_behind_adds_to_the_bucket_that_is_there(empty: Valkey) -> None:
    add(empty, [("new", 1)], now_s=NOW_S + RETENTION_S)
    add(empty, [("late", 1)], now_s=NOW_S)

    assert counts(empty) == {"new": (1, 1), "late": (1, 1)}


def test_what_was_heard_before_a_withdrawal_is_refused_behind_the_fence(empty: Valkey) -> None:
    known = Fence(epoch=1, forgotten=1)
    assert add(empty, [("hello", 1)], fence=known) == 1
    empty.run(forget_command(TAG, [a_text("hello")], fence=Fence(epoch=1, forgotten=2)))

    assert add(empty, [("hello", 1)], fence=known) == 0
    assert add(empty, [("hello", 1)], fence=Fence(epoch=0, forgotten=3)) == 0
    assert counts(empty) == {}
    assert add(empty, [("hello", 1)], fence=Fence(epoch=1, forgotten=2)) == 1


def test_a_forgotten_text_leaves_every_bucket_and_others_stay(empty: Valkey) -> None:
    for at in range(BUCKETS):
        add(empty, [("stays", 1), ("goes", 1)], now_s=NOW_S + at * RETENTION_S // BUCKETS)

    empty.run(forget_command(TAG, [a_text("goes")], fence=Fence(forgotten=1)))

    assert counts(empty) == {"stays": (1, 1)}
    assert len(history(empty)[1]) == BUCKETS


def test_room_that_a_forgotten_text_took_is_free_again(empty: Valkey) -> None:
    room = 2 * (len(pack(a_text("a"))) + TEXT_OVERHEAD_BYTES)
    add(empty, [("a", 9), ("b", 9)], max_bytes=room)
    empty.run(forget_command(TAG, [a_text("a")], fence=Fence(forgotten=1)))
    add(empty, [("c", 1)], max_bytes=room, fence=Fence(forgotten=1))

    assert counts(empty) == {"b": (9, 9), "c": (1, 1)}


def test_a_withdrawn_tenant_has_no_history_and_no_plan_and_another_keeps_both(
    empty: Valkey,
) -> None:
    for tag in (TAG, OTHER):
        add(empty, [("hello", 1)], tag=tag)
        empty.run(plan_command(tag, b"plan", fence=Fence(), expires_at_s=4_100_000_000))

    empty.run(forget_command(TAG, None, fence=Fence(epoch=5)))

    assert history(empty) == (Fence(epoch=5), [])
    assert empty.run(("GET", plan_name(TAG)), ("GET", plan_name(OTHER))) == [None, b"plan"]
    assert counts(empty, OTHER) == {"hello": (1, 1)}


def test_a_plan_made_before_a_withdrawal_is_not_written_after_it(empty: Valkey) -> None:
    add(empty, [("hello", 1)])
    read, _ = history(empty)
    empty.run(forget_command(TAG, [a_text("hello")], fence=Fence(forgotten=1)))

    late = plan_command(TAG, b"plan", fence=read, expires_at_s=4_100_000_000)

    assert empty.run(late, ("GET", plan_name(TAG))) == [0, None]


def test_a_shorter_retention_holds_for_what_lies_there(empty: Valkey) -> None:
    add(empty, [("hello", 1)])
    _, buckets = history(empty)

    empty.run(*shorten_commands(TAG, buckets, retention_s=4000))

    (name,) = [name for name in bucket_names(TAG) if empty.run(("EXISTS", name)) == [1]]
    assert empty.run(("EXPIRETIME", name)) == [buckets[0].start_s + 4000]


def test_a_longer_retention_goes_on_with_what_lies_there(empty: Valkey) -> None:
    add(empty, [("hello", 1)])
    for more in range(1, 40):
        assert add(empty, [("hello", 1)], now_s=NOW_S + more, retention_s=16 * RETENTION_S) == 1

    _, buckets = history(empty)
    assert sum(count.least for bucket in buckets for count in bucket.counts) == 40


def test_all_of_a_tenant_lies_in_one_slot() -> None:
    slots = {slot_of(name) for name in (*bucket_names(TAG), fence_name(TAG), plan_name(TAG))}

    assert len(slots) == 1
    assert slots != {slot_of(plan_name(OTHER))}
