"""The call as a state machine, driven without I/O and without a clock of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkeep.client.embedding import EmbedExchange, Learned, Setting, check
from embedkeep.client.exchange import Patience, Response, Transmit
from embedkeep.client.near import NearStore
from embedkeep.client.options import Ask, CacheControl, NearCache, Retries
from embedkeep.client.results import CacheInfo, Source
from embedkeep.client.wire import info_of
from embedkeep.errors import (
    DeadlineExceeded,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    ModelDrift,
    Overloaded,
    Unauthenticated,
    Unavailable,
    UnknownModel,
)
from embedkeep.v1 import cache_pb2
from embedkeep.views import Encoding
from support.fake_node import DIMENSIONS, FakeNode, vector_of

UNAVAILABLE = 14


def answer(node: FakeNode, transmit: Transmit) -> Response:
    """What *node* says, without gRPC."""
    request = transmit.request
    if isinstance(request, cache_pb2.InfoRequest):
        node.infos += 1
        return node.described()
    assert isinstance(request, cache_pb2.EmbedRequest)
    node.requests.append(request)
    return node.answer(request)


@dataclass
class World:
    """One node, one client's knowledge, and time that stands until it is moved."""

    node: FakeNode = field(default_factory=FakeNode)
    retries: Retries = field(default_factory=Retries)
    learned: Learned = field(default_factory=Learned)
    near: NearStore | None = None
    parallel: int = 4
    has_fallback: bool = False
    timeout_s: float = 10.0
    now: float = 100.0
    errors: list[EmbedKeepError] = field(default_factory=list)
    """Embed requests fail with these first."""
    pauses: list[float] = field(default_factory=list)
    most_flying: int = 0

    def call(self, texts: Sequence[str], ask: Ask | None = None) -> EmbedExchange:
        batch, errors = check(texts)
        return EmbedExchange(
            batch,
            ask or Ask(),
            patience=Patience(
                started_at=self.now, timeout_s=self.timeout_s, retries=self.retries,
                draw=lambda: 1.0,
            ),
            setting=Setting(
                learned=self.learned, near=self.near, encoding=Encoding.FLOAT32,
                parallel=self.parallel, has_fallback=self.has_fallback,
            ),
            errors=errors,
        )  # fmt: skip

    def drive(
        self, exchange: EmbedExchange, *, pick: Callable[[int], int] = lambda flying: flying - 1
    ) -> EmbedExchange:
        """Run *exchange* to its end; *pick* says which of the requests in flight comes back."""
        flying: list[Transmit] = []
        while True:
            flying += exchange.due(self.now)
            self.most_flying = max(self.most_flying, len(flying))
            if exchange.done:
                return exchange
            if not flying:
                rest_s = exchange.rest_s(self.now)
                assert rest_s is not None, "neither done nor waiting"
                self.pauses.append(rest_s)
                self.now += rest_s
                continue
            transmit = flying.pop(pick(len(flying)))
            request = transmit.request
            if isinstance(request, cache_pb2.EmbedRequest) and self.errors:
                exchange.failed(transmit.ticket, self.errors.pop(0), self.now)
            elif (
                isinstance(request, cache_pb2.EmbedRequest)
                and len(request.inputs) > self.node.max_inputs
            ):
                exchange.failed(transmit.ticket, InvalidRequest("too many inputs"), self.now)
            else:
                exchange.answered(transmit.ticket, answer(self.node, transmit), self.now)


class Shrinking(FakeNode):
    """Tells a lower limit each time."""

    def described(self) -> cache_pb2.InfoResponse:
        self.max_inputs -= 1
        return super().described()


@settings(deadline=None)
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=40),
    max_inputs=st.integers(1, 10), parallel=st.integers(1, 5), data=st.data(),
    failures=st.integers(0, 4),
)  # fmt: skip
def test_each_row_stands_at_its_own_index_in_whatever_order_answers_come(
    texts: list[str], max_inputs: int, parallel: int, data: st.DataObject, failures: int
) -> None:
    world = World(node=FakeNode(max_inputs=max_inputs, max_message_bytes=4096), parallel=parallel)
    world.errors = [Unavailable("planted")] * failures

    exchange = world.call(texts)
    world.drive(exchange, pick=lambda flying: data.draw(st.integers(0, flying - 1)))

    np.testing.assert_array_equal(
        np.stack([vector_of(text) for text in texts]), exchange.result().vectors
    )
    assert sorted(world.node.texts) == sorted(texts)
    assert world.most_flying <= parallel
    assert all(len(request.inputs) <= max_inputs for request in world.node.requests)


def test_limits_are_asked_for_once() -> None:
    world = World()

    world.drive(world.call(["a"]))
    world.drive(world.call(["b"]))

    assert world.node.infos == 1


def test_limits_are_asked_for_again_when_the_model_has_changed() -> None:
    world = World()
    world.drive(world.call(["a"]))
    world.node.model = "model-b"
    world.drive(world.call(["a"]))

    world.drive(world.call(["a"]))

    assert world.node.infos == 2


def test_limits_told_before_the_model_is_known_are_not_kept() -> None:
    """How many rows fit an answer depends on the model."""
    world = World(node=FakeNode(dimensions=0))
    world.drive(world.call(["a"]))
    world.node.dimensions = DIMENSIONS

    world.drive(world.call(["a"]))
    world.drive(world.call(["a"]))

    assert world.node.infos == 2
    assert world.learned.info == an_info()


def test_a_request_that_lower_limits_refuse_is_cut_anew() -> None:
    world = World(node=FakeNode(max_inputs=6), parallel=2)
    texts = [f"text {number}" for number in range(15)]
    world.drive(world.call(texts))
    world.node.max_inputs = 2
    world.node.requests.clear()

    result = world.drive(world.call(texts)).result()

    np.testing.assert_array_equal(np.stack([vector_of(text) for text in texts]), result.vectors)
    assert {len(request.inputs) for request in world.node.requests} == {1, 2}
    assert world.node.infos == 2
    world.drive(world.call(texts))
    assert world.node.infos == 2


def test_a_request_is_cut_anew_once_and_then_the_refusal_stands() -> None:
    """Nodes of one cache that have different limits must not keep a call busy."""
    world = World(node=Shrinking(max_inputs=9), parallel=1)
    world.errors = [InvalidRequest("first"), InvalidRequest("second"), InvalidRequest("third")]

    with pytest.raises(InvalidRequest, match="second"):
        world.drive(world.call(["a", "b"]))


def test_a_refusal_that_is_not_about_limits_sends_nothing_twice() -> None:
    world = World(learned=Learned(info=an_info()), errors=[InvalidRequest("no such prompt")])

    with pytest.raises(InvalidRequest, match="no such prompt"):
        world.drive(world.call(["a"]))

    assert (world.node.infos, world.node.requests) == (1, [])
    assert world.learned.info == an_info()


@pytest.mark.parametrize("kind", [InvalidInput, UnknownModel, Unauthenticated])
def test_a_text_a_name_or_a_key_that_is_refused_asks_for_no_limits(
    kind: type[InvalidRequest],
) -> None:
    world = World(learned=Learned(info=an_info()), errors=[kind("planted")])

    with pytest.raises(kind, match="planted"):
        world.drive(world.call(["a"]))

    assert world.node.infos == 0


def test_a_text_that_is_too_long_by_old_limits_is_judged_by_new_ones() -> None:
    world = World(node=FakeNode(max_input_bytes=5))
    world.drive(world.call(["short"]))
    world.node.max_input_bytes = 20

    result = world.drive(world.call(["longer", "x" * 30])).result()

    assert world.node.texts == ["short", "longer"]
    assert [failure.index for failure in result.failed] == [1]
    assert world.node.infos == 2


def test_an_unavailable_node_is_asked_again_after_pauses_that_double() -> None:
    world = World(retries=Retries(max_attempts=5, first_pause_s=0.1, max_pause_s=0.5))
    world.errors = [Unavailable("planted")] * 4

    exchange = world.drive(world.call(["a"]))

    assert world.pauses == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert exchange.retried == 4


def test_the_last_attempt_ends_with_the_nodes_own_error() -> None:
    world = World(retries=Retries(max_attempts=2))
    planted = [Unavailable("first"), Unavailable("second")]
    world.errors = list(planted)

    with pytest.raises(Unavailable) as raised:
        world.drive(world.call(["a"]))

    assert raised.value is planted[1]


def test_what_never_fits_as_a_whole_is_answered_in_halves() -> None:
    world = World(node=FakeNode(max_inputs=128))
    texts = [f"text {number}" for number in range(128)]

    exchange = world.call(texts)
    world.errors = [Overloaded("busy", retry_after_s=0.1)] * 3
    world.drive(exchange, pick=lambda _flying: 0)

    np.testing.assert_array_equal(
        np.stack([vector_of(text) for text in texts]), exchange.result().vectors
    )
    assert sorted(len(request.inputs) for request in world.node.requests) == [32, 32, 32, 32]


def test_no_request_is_cut_into_crumbs() -> None:
    world = World()
    world.errors = [Overloaded("busy", retry_after_s=0.1)] * 2

    world.drive(world.call(["a"] * 31))

    assert [len(request.inputs) for request in world.node.requests] == [31]


def test_an_overloaded_node_is_asked_again_only_when_it_says_when() -> None:
    world = World()
    world.errors = [Overloaded("busy", retry_after_s=3.0)]
    world.drive(world.call(["a"]))
    world.errors = [Overloaded("busy")]

    with pytest.raises(Overloaded):
        world.drive(world.call(["a"]))

    assert world.pauses == pytest.approx([3.1])


def test_what_cannot_pass_by_itself_is_not_asked_again() -> None:
    for error in (DeadlineExceeded("late"), InvalidRequest("bad"), InvalidResponse("odd")):
        world = World(errors=[error])

        with pytest.raises(type(error)):
            world.drive(world.call(["a"]))

        assert world.pauses == []


def test_a_pause_beyond_the_deadline_ends_the_call_at_once() -> None:
    world = World(timeout_s=2.0)
    world.errors = [Overloaded("busy", retry_after_s=3.0)]

    with pytest.raises(Overloaded):
        world.drive(world.call(["a"]))

    assert world.now == 100.0


def test_the_deadline_counts_over_all_parts_and_retries() -> None:
    world = World(node=FakeNode(max_inputs=1), parallel=1, timeout_s=2.0)
    exchange = world.call(["a", "b", "c"])
    timeouts = []

    for _ in range(3):
        (transmit,) = exchange.due(world.now)
        timeouts.append(transmit.timeout_s)
        world.now += 0.75
        exchange.answered(transmit.ticket, answer(world.node, transmit), world.now)

    with pytest.raises(DeadlineExceeded, match="within 2 s"):
        exchange.due(world.now)

    assert timeouts == pytest.approx([2.0, 1.25, 0.5])


@given(attempts=st.integers(1, 5000), draw=st.floats(0, 1, exclude_max=True))
def test_pauses_are_within_their_bounds_for_any_attempt(attempts: int, draw: float) -> None:
    patience = Patience(
        started_at=0, timeout_s=1e9, draw=lambda: draw,
        retries=Retries(max_attempts=10_000, first_pause_s=0.1, max_pause_s=2.0),
    )  # fmt: skip

    pause_s = patience.pause_s(Unavailable("x"), attempts=attempts, now=0)

    assert pause_s is not None
    assert 0 <= pause_s <= 2.0


def test_rows_that_may_pass_are_asked_for_again_without_the_others() -> None:
    node = FakeNode(bad_texts={"b": (UNAVAILABLE, "EmbedderUnavailable"), "c": (3, "InvalidInput")})
    node.bad_times["b"] = 1
    world = World(node=node)

    result = world.drive(world.call(["a", "b", "c"])).result()

    assert [list(request.inputs) for request in node.requests] == [["a", "b", "c"], ["b"]]
    assert [source is Source.NONE for source in result.sources] == [False, False, True]
    assert [failure.index for failure in result.failed] == [2]
    assert isinstance(result.failed[0].error, InvalidInput)
    assert result.failed[0].error.index == 2


def test_inputs_no_node_would_take_are_refused_here_and_the_others_are_sent() -> None:
    world = World(node=FakeNode(max_input_bytes=5))

    result = world.drive(world.call(["short", "é" * 3, "bad \ud800", "ok"])).result()

    assert world.node.texts == ["short", "ok"]
    assert {failure.index for failure in result.failed} == {1, 2}
    assert "6 bytes" in str(result.failed[0].error)
    assert "U+D800" in str(result.failed[1].error)
    assert np.isnan(result.vectors[[1, 2]]).all()
    assert not np.isnan(result.vectors[[0, 3]]).any()


def test_one_result_never_mixes_two_models() -> None:
    """While a model is being replaced, nodes answer with either; the call begins anew."""
    node = FakeNode(max_inputs=1)
    world = World(node=node, parallel=1)
    exchange = world.call(["a", "b"])
    flying = exchange.due(world.now)
    exchange.answered(flying[0].ticket, answer(node, flying[0]), world.now)
    (first,) = exchange.due(world.now)
    exchange.answered(first.ticket, answer(node, first), world.now)
    node.model = "model-b"

    result = world.drive(exchange).result()

    np.testing.assert_array_equal(
        np.stack([vector_of(text, model="model-b") for text in "ab"]), result.vectors
    )
    assert result.fingerprint == "model-b"


def test_a_call_that_never_gets_one_model_says_so() -> None:
    node = FakeNode(max_inputs=1)

    def flip(response: cache_pb2.EmbedResponse) -> None:
        response.fingerprint = f"model-{len(node.requests)}"

    node.spoil = flip
    world = World(node=node, parallel=1)

    with pytest.raises(ModelDrift, match="different models"):
        world.drive(world.call(["a", "b"]))


def test_a_call_that_cannot_begin_anew_in_time_falls_back_and_sends_nothing_more() -> None:
    node = FakeNode(max_inputs=1)
    world = World(
        node=node, parallel=1, has_fallback=True, timeout_s=0.1,
        learned=Learned(info=info_of(node.described())),
    )  # fmt: skip
    exchange = world.call(["a", "b"])
    for model in ("model-a", "model-b"):
        node.model = model
        (transmit,) = exchange.due(world.now)
        exchange.answered(transmit.ticket, answer(node, transmit), world.now)

    assert exchange.done
    assert exchange.unanswered() == [1]


def a_near(world: World) -> NearStore:
    return NearStore(NearCache(max_bytes=1 << 20), clock=lambda: world.now)


def test_the_near_cache_answers_repeats_and_only_the_rest_is_sent() -> None:
    world = World()
    world.near = a_near(world)
    world.drive(world.call(["a", "b"]))
    world.node.requests.clear()

    exchange = world.drive(world.call(["b", "c", "a", "b"]))
    result = exchange.result()

    assert world.node.texts == ["c"]
    assert result.sources == (Source.NEAR, Source.L1, Source.NEAR, Source.NEAR)
    assert exchange.near_hits == 3
    assert result.tokens == (1, 1, 1, 1)
    np.testing.assert_array_equal(np.stack([vector_of(text) for text in "bcab"]), result.vectors)


def test_changing_a_result_does_not_change_what_is_near() -> None:
    world = World()
    world.near = a_near(world)
    world.drive(world.call(["a"])).result().vectors[:] = 0

    again = world.drive(world.call(["a"])).result()
    again.vectors[:] = 1

    np.testing.assert_array_equal(
        vector_of("a"), world.drive(world.call(["a"])).result().vectors[0]
    )


def test_near_rows_of_a_replaced_model_do_not_stand_beside_new_ones() -> None:
    world = World()
    world.near = a_near(world)
    world.drive(world.call(["a"]))
    world.node.model = "model-b"

    result = world.drive(world.call(["a", "b"])).result()

    np.testing.assert_array_equal(
        np.stack([vector_of(text, model="model-b") for text in "ab"]), result.vectors
    )


def test_cache_control_holds_for_the_near_cache_too() -> None:
    world = World()
    world.near = a_near(world)
    world.drive(world.call(["kept"]))
    world.drive(world.call(["passing"], Ask(cache=CacheControl(no_store=True))))
    world.node.requests.clear()

    world.drive(world.call(["kept"], Ask(cache=CacheControl(no_cache=True))))
    world.drive(world.call(["passing"]))

    assert world.node.texts == ["kept", "passing"]


def test_without_a_node_only_the_rows_that_are_missing_fall_back() -> None:
    world = World(has_fallback=True, retries=Retries(max_attempts=1))
    world.near = a_near(world)
    world.drive(world.call(["near"]))
    world.errors = [Unavailable("planted")]

    exchange = world.drive(world.call(["near", "far", "\ud800"]))

    assert exchange.unanswered() == [1]
    exchange.fell_back([1], np.ones((1, DIMENSIONS), dtype=np.float32))
    assert exchange.result().sources == (Source.NEAR, Source.FALLBACK, Source.NONE)


def test_a_fallback_is_not_asked_for_what_was_only_wanted_from_the_cache() -> None:
    world = World(has_fallback=True, retries=Retries(max_attempts=1))
    world.errors = [Unavailable("planted")]

    with pytest.raises(Unavailable):
        world.drive(world.call(["a"], Ask(cache=CacheControl(only_if_cached=True))))


def test_a_refused_request_is_not_a_cache_that_is_gone() -> None:
    world = World(has_fallback=True, errors=[InvalidRequest("planted")])

    with pytest.raises(InvalidRequest):
        world.drive(world.call(["a"]))


def test_all_failed_inputs_have_rows_as_wide_as_the_model() -> None:
    world = World(learned=Learned(info=an_info()))

    result = world.drive(world.call(["\ud800"])).result()

    assert result.vectors.shape == (1, DIMENSIONS)
    assert world.node.requests == []


def an_info() -> CacheInfo:
    return info_of(FakeNode().described())
