"""Which texts go into which request, with arithmetic for an upstream and a clock of its own."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Batching
from embedkeep.embedder.lanes import Lane
from embedkeep.embedder.schedule import Item, Newcomer, Schedule
from embedkeep.embedder.upstream.failures import Failure, Kind
from embedkeep.embedder.upstream.policy import (
    GROW_AFTER,
    MOST_TRIES,
    SEARCH_REQUESTS,
    Part,
    Policy,
    Settled,
    Sizes,
    Why,
)
from embedkeep.embedder.upstream.wires import Answer

SIZE = 10
"""Of every text."""


@dataclass(eq=False)
class Wish:
    """One caller's wish for one text."""

    text: str
    settled: bool = False
    ends_s: float = math.inf


@dataclass
class World:
    """A policy, what it has sent, and what is settled."""

    max_inputs: int = 8
    max_tokens: int = 1 << 20
    concurrent: int = 1
    now_s: float = 0.0
    sent: list[list[str]] = field(default_factory=list)
    settled: dict[str, tuple[Why | None, Failure | None]] = field(default_factory=dict)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.sizes = Sizes(
            max_inputs=self.max_inputs, max_tokens=self.max_tokens, concurrent=self.concurrent
        )
        self.schedule: Schedule[Wish] = Schedule(Batching(), self.sizes)
        self.policy: Policy[Wish] = Policy(
            self.schedule, self.sizes, concurrent=self.concurrent, dice=lambda: 1.0
        )

    def offer(
        self,
        *texts: str,
        lane: Lane = Lane.DEMAND,
        flow: bytes = b"",
        size: int = SIZE,
        ends_s: float = math.inf,
    ) -> list[Item[Wish]]:
        items = [
            Item(
                payload=Wish(text, ends_s=ends_s),
                tokens=size,
                lane=lane,
                flow=flow,
                arrived_s=self.now_s,
                key=text,
            )
            for text in texts
        ]
        self.schedule.reserve(Newcomer(inputs=len(items), lane=lane), now_s=0.0)
        self.schedule.offer(items)
        return items

    def send(self) -> Part[Wish] | None:
        part = self.policy.next(self.now_s)
        if part is not None:
            self.sent.append(texts_of(part))
            self.most_in_flight = max(self.most_in_flight, self.policy.in_flight)
        else:
            wait_s = self.policy.wait_s(self.now_s)
            assert wait_s is None or wait_s > 0, "whoever waits so long waits in a busy loop"
        return part

    def answer(self, part: Part[Wish], outcome: Answer | Failure | None = None) -> None:
        """None: as it should be."""
        for done in self.policy.answered(
            part, outcome or good(part), took_ns=1000, now_s=self.now_s
        ):
            self._note(done)

    def _note(self, done: Settled[Wish]) -> None:
        for row in done.rows:
            text = row.payer.payload.text
            assert text not in self.settled, "settled twice"
            self.settled[text] = (done.why, done.failure)
            for item in row.waiters:
                item.payload.settled = True

    def run(self, answer: Callable[[Sequence[str]], Failure | None]) -> None:
        """Until nothing is left; the clock moves on where there is a pause."""
        flying: list[Part[Wish]] = []
        for _ in range(10_000):
            while (part := self.send()) is not None:
                flying.append(part)
            if flying:
                done = flying.pop(0)
                self.answer(done, answer(texts_of(done)))
            elif (wait_s := self.policy.wait_s(self.now_s)) is not None:
                self.now_s += wait_s
            else:
                return
        raise AssertionError("it never ends")


def texts_of(part: Part[Wish]) -> list[str]:
    return [row.payer.payload.text for row in part.rows]


def good(part: Part[Wish]) -> Answer:
    return Answer(vectors=np.zeros((len(part.rows), 1), np.float32), tokens=7 * len(part.rows))


def failed(kind: Kind, **fields: object) -> Failure:
    return Failure(kind=kind, said=kind, **fields)  # type: ignore[arg-type]  # fields of Failure


@given(
    count=st.integers(1, 600), bad=st.sets(st.integers(0, 599), max_size=3), several=st.booleans()
)
def test_bisection_finds_exactly_the_bad_inputs_within_its_bound(
    *, count: int, bad: set[int], several: bool
) -> None:
    world = World(max_inputs=600, concurrent=5 if several else 1)
    texts = [f"t{n}" for n in range(count)]
    poison = {texts[n] for n in bad if n < count}
    world.offer(*texts)

    world.run(lambda sent: failed(Kind.REJECTED) if poison & set(sent) else None)

    assert {text for text, (why, _) in world.settled.items() if why is Why.REFUSED} == poison
    assert {text for text, (why, _) in world.settled.items() if why is None} == {*texts} - poison
    assert len(world.sent) <= 1 + 2 * len(poison) * math.ceil(math.log2(count) if count > 1 else 0)


@given(count=st.integers(2, 300), at=st.integers(0, 299), lies=st.booleans())
def test_an_input_that_the_upstream_names_is_asked_for_alone_and_not_believed(
    *, count: int, at: int, lies: bool
) -> None:
    world = World(max_inputs=300)
    texts = [f"t{n:03}" for n in range(count)]
    bad = texts[at % count]
    world.offer(*texts)

    def answer(sent: Sequence[str]) -> Failure | None:
        if bad not in sent:
            return None
        named = sent.index(bad)
        return failed(Kind.REJECTED, suspect=(named + 1) % len(sent) if lies else named)

    world.run(answer)

    assert {text for text, (why, _) in world.settled.items() if why is Why.REFUSED} == {bad}
    assert len(world.sent) <= (3 if not lies else 3 + 2 * math.ceil(math.log2(count)))


def test_a_search_ends_where_everything_is_refused() -> None:
    world = World(max_inputs=2048)
    world.offer(*(f"t{n}" for n in range(2048)))

    world.run(lambda _: failed(Kind.REJECTED))

    assert len(world.settled) == 2048
    assert {why for why, _ in world.settled.values()} <= {Why.REFUSED, Why.NOT_FOUND}
    assert len(world.sent) <= 1 + SEARCH_REQUESTS


@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=80),
    max_inputs=st.integers(1, 9),
    max_tokens=st.integers(50, 200),
    concurrent=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_requests_keep_the_limits_and_never_more_than_allowed_are_in_flight(
    sizes: list[int], max_inputs: int, max_tokens: int, concurrent: int, seed: int
) -> None:
    world = World(max_inputs=max_inputs, max_tokens=max_tokens, concurrent=concurrent)
    dice = random.Random(seed)
    size_of = {f"t{n}": size for n, size in enumerate(sizes)}
    for text, size in size_of.items():
        world.offer(text, size=size, lane=dice.choice([*Lane]), flow=dice.choice([b"a", b"b"]))

    world.run(
        lambda _: dice.choice(
            [None, None, failed(Kind.FAILED), failed(Kind.THROTTLED, retry_after_s=2.0)]
        )
    )

    assert world.settled.keys() == size_of.keys()
    assert world.most_in_flight <= concurrent
    for sent in world.sent:
        assert len(sent) <= max_inputs
        assert len(sent) == 1 or sum(size_of[text] for text in sent) <= max_tokens


@given(limit=st.integers(1, 40), kind=st.sampled_from([Kind.TOO_MANY, Kind.TOO_LONG]))
def test_a_limit_that_nobody_told_is_learned(limit: int, kind: Kind) -> None:
    world = World(max_inputs=64)
    texts = [f"t{n}" for n in range(64)]
    world.offer(*texts)
    world.run(lambda sent: failed(kind) if len(sent) > limit else None)
    before = len(world.sent)

    world.offer(*(f"more {text}" for text in texts[:20]))
    world.run(lambda sent: failed(kind) if len(sent) > limit else None)

    assert all(why is None for why, _ in world.settled.values())
    assert max(map(len, world.sent[before:])) <= limit, "no request of that size is made again"
    assert sum(len(sent) > limit for sent in world.sent) <= math.log2(64)


def test_a_limit_that_was_none_is_forgotten_after_a_while() -> None:
    """Words that sound like a limit may be a quoted text's."""
    world = World(max_inputs=8)
    world.offer(*(f"t{n}" for n in range(8)))
    first = world.send()
    assert first is not None
    world.answer(first, failed(Kind.TOO_MANY))
    for n in range(4 * GROW_AFTER):
        world.offer(f"more {n}")
    world.run(lambda _: None)
    before = len(world.sent)

    world.offer(*(f"last {n}" for n in range(8)))
    world.run(lambda _: None)

    assert [len(sent) for sent in world.sent[before:]] == [8]


def test_a_part_that_may_not_go_yet_is_waited_for_without_haste() -> None:
    world = World(concurrent=2, max_inputs=1)
    world.offer("bulk 1", "bulk 2", lane=Lane.BULK)
    first = world.send()
    assert first is not None
    world.answer(first, failed(Kind.FAILED))
    assert world.send() is not None
    world.now_s = 60.0

    assert world.send() is None, "the last request is kept for people"
    assert world.policy.wait_s(world.now_s) is None


def test_work_that_can_wait_leaves_a_request_for_people() -> None:
    world = World(concurrent=2, max_inputs=1)
    world.offer("bulk 1", "bulk 2", lane=Lane.BULK)

    assert world.send() is not None
    assert world.send() is None, "the last request is kept"
    world.offer("person")
    assert world.send() is not None

    assert world.sent == [["bulk 1"], ["person"]]


def test_people_go_before_a_batch_that_is_made_again_which_does_not_starve() -> None:
    world = World(max_inputs=1)
    world.offer("bulk", lane=Lane.BULK)
    part = world.send()
    assert part is not None
    world.answer(part, failed(Kind.FAILED))
    world.now_s = 60.0
    world.offer(*(f"person {n}" for n in range(6)))

    world.run(lambda _: None)

    assert world.sent.index(["bulk"], 1) in {4, 5}, "people first, but every fourth turn is its"


def test_while_one_waits_all_others_are_asked_when_a_single_request_fails() -> None:
    world = World(concurrent=3, max_inputs=1)
    world.offer("a", "b")
    first, second = world.send(), world.send()
    assert first is not None
    assert second is not None

    world.answer(first, failed(Kind.FAILED))
    world.answer(second)
    world.offer("c")

    assert world.send() is not None, "c need not wait for the pause of a"
    assert world.send() is None
    world.now_s += 1.0
    assert world.send() is not None
    assert world.sent[2:] == [["c"], ["a"]]


def test_a_pause_that_is_asked_for_holds_all_requests_and_ends_with_one_alone() -> None:
    world = World(concurrent=4, max_inputs=1)
    world.offer("a", "b", "c")
    part = world.send()
    assert part is not None

    world.answer(part, failed(Kind.THROTTLED, retry_after_s=20.0))

    assert (world.send(), world.policy.wait_s(world.now_s)) == (None, 20.0)
    world.now_s = 20.0
    alone = world.send()
    assert alone is not None
    assert world.send() is None, "one goes first"
    world.answer(alone)
    assert world.send() is not None
    assert world.send() is not None


def test_tries_are_bounded_and_what_nobody_waits_for_is_not_tried_again() -> None:
    world = World(max_inputs=2)
    left, stays = world.offer("left", "stays")
    tries = 0

    def answer(_: Sequence[str]) -> Failure:
        nonlocal tries
        tries += 1
        left.payload.settled = True
        return failed(Kind.FAILED)

    world.run(answer)

    assert tries == MOST_TRIES
    assert world.sent == [["left", "stays"], *[["stays"]] * (MOST_TRIES - 1)]
    assert world.settled["stays"][0] is Why.GAVE_UP
    assert not stays.payload.settled or "left" not in world.settled


def test_no_try_is_begun_that_begins_after_its_callers_time() -> None:
    """With dice that say 1, the tries are at 0, 0.25, 0.75 and 1.75 s."""
    world = World(max_inputs=3)
    world.offer("hurried", ends_s=0.7)
    world.offer("hurried", "slower", ends_s=1.0)
    world.offer("patient")

    world.run(lambda _: failed(Kind.FAILED) if len(world.sent) < 4 else None)

    first = ["hurried", "slower", "patient"]
    assert world.sent == [first, first, first, ["patient"]]
    late = (Why.LATE, failed(Kind.FAILED))
    assert world.settled == {"hurried": late, "slower": late, "patient": (None, None)}


def test_callers_whose_time_was_up_say_nothing_of_the_upstream() -> None:
    world = World(max_inputs=1)
    world.offer("a", "b", "c", "d")

    world.run(lambda _: failed(Kind.LATE))

    assert world.sent == [["a"], ["b"], ["c"], ["d"]]
    assert {why for why, _ in world.settled.values()} == {Why.LATE}
    assert not world.policy.pace.left_s(world.now_s)


@given(kind=st.sampled_from([Kind.EXHAUSTED, Kind.KEY, Kind.MODEL, Kind.NONSENSE]))
def test_what_another_try_cannot_help_is_not_tried_again(kind: Kind) -> None:
    world = World(max_inputs=2)
    world.offer("a", "b")
    part = world.send()
    assert part is not None

    world.answer(part, failed(kind))

    assert [why for why, _ in world.settled.values()] == [Why.GAVE_UP] * 2
    waits = kind is not Kind.NONSENSE
    assert world.policy.will_wait(1e9, world.now_s) is not waits, "nobody waits for a person to act"


def test_a_person_waits_for_a_short_pause_and_a_job_for_what_its_call_allows() -> None:
    world = World()
    world.offer("a")
    part = world.send()
    assert part is not None
    world.answer(part, failed(Kind.THROTTLED, retry_after_s=8.0))
    policy = world.policy

    assert not policy.will_wait(policy.patience_s(Lane.DEMAND, 30.0), 0.0)
    assert policy.will_wait(policy.patience_s(Lane.DEMAND, 30.0), 4.0)
    assert policy.will_wait(policy.patience_s(Lane.BULK, 30.0), 0.0)
    assert not policy.will_wait(policy.patience_s(Lane.BULK, 7.0), 0.0)
    assert policy.will_wait(policy.patience_s(Lane.BULK, math.inf), 0.0)


def test_time_and_tokens_are_apportioned_and_add_up() -> None:
    world = World(max_inputs=3)
    world.offer("a", size=1)
    world.offer("b", size=2)
    world.offer("c", size=4)
    part = world.send()
    assert part is not None
    assert world.policy.answered(part, failed(Kind.FAILED), took_ns=700, now_s=0.0) == []
    world.now_s = 60.0
    again = world.send()
    assert again is not None

    (done,) = world.policy.answered(
        again, Answer(vectors=np.zeros((3, 1), np.float32), tokens=100), took_ns=7000, now_s=60.0
    )

    assert (sum(done.spent_ns), sum(done.tokens)) == (7700, 100)
    assert list(done.spent_ns) == [1100, 2200, 4400], "both tries"


def test_equal_texts_of_a_flow_are_asked_for_once() -> None:
    world = World()
    world.offer("same", "same", flow=b"a")
    world.offer("same", flow=b"b")

    part = world.send()

    assert part is not None
    assert sorted(len(row.waiters) for row in part.rows) == [1, 2]
