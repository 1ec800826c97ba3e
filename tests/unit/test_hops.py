"""What a peer answers is taken only where it is surely what was asked for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.errors import (
    EmbedderUnavailable,
    EmbedKeepError,
    Internal,
    InvalidInput,
    InvalidResponse,
    ModelDrift,
    Overloaded,
    code_of,
)
from embedkeep.keys import KEY_BYTES, Key
from embedkeep.node.flights import Origin
from embedkeep.node.hops import outcomes_of
from embedkeep.records import Entry, encode
from embedkeep.v1 import cache_pb2, peers_pb2

DIMENSIONS = 3
KEYS = [Key(bytes([number]) * KEY_BYTES) for number in range(4)]
ENTRIES = [
    Entry(
        vector=np.full(DIMENSIONS, number, np.float32),
        tokens=number,
        truncated=number == 1,
        imported=number == 2,
        device_ns=10 * number,
        born_s=1_700_000_000 + number,
    )
    for number in range(4)
]


def carried(*failed: tuple[int, EmbedKeepError], **fields: object) -> peers_pb2.Carried:
    """What a peer answers for all of *KEYS*."""
    answer = peers_pb2.Carried(
        records=[encode(key, entry) for key, entry in zip(KEYS, ENTRIES, strict=True)],
        sources=[
            cache_pb2.SOURCE_L1, cache_pb2.SOURCE_VALKEY,
            cache_pb2.SOURCE_EMBEDDER, cache_pb2.SOURCE_COALESCED,
        ],
        errors=[
            cache_pb2.InputError(
                index=index, code=code_of(error), reason=error.reason, message=str(error)
            )
            for index, error in failed
        ],
    )  # fmt: skip
    for name, value in fields.items():
        getattr(answer, name)[:] = value
    return answer


def found(answer: peers_pb2.Carried) -> list[object]:
    return [
        None if ended is None else ended[0]
        for ended in outcomes_of(answer, KEYS, dimensions=DIMENSIONS, imports=True)
    ]


def test_entries_come_whole_with_where_they_came_from() -> None:
    ended = list(outcomes_of(carried(), KEYS, dimensions=DIMENSIONS, imports=True))

    origins = [each[1] for each in ended if each is not None]
    assert origins == [Origin.PEER, Origin.PEER, Origin.EMBEDDER, Origin.COALESCED]
    for each, entry in zip(ended, ENTRIES, strict=True):
        assert each is not None
        outcome = each[0]
        assert isinstance(outcome, Entry)
        assert outcome.vector.tobytes() == entry.vector.tobytes()
        empty = np.empty(0, np.float32)
        assert str(replace(outcome, vector=empty)) == str(replace(entry, vector=empty))


@pytest.mark.parametrize("error", [InvalidInput("bad"), Internal("broken"), InvalidResponse("NaN")])
def test_what_is_an_inputs_own_fault_is_told_and_not_tried_again(error: EmbedKeepError) -> None:
    (_, told, _, _) = found(carried((1, error)))

    assert type(told) is type(error)


@pytest.mark.parametrize("error", [Overloaded("x"), EmbedderUnavailable("x"), ModelDrift("x")])
def test_what_is_the_peers_own_failure_is_left_to_this_node(error: EmbedKeepError) -> None:
    assert found(carried((1, error)))[1] is None


def test_what_callers_have_brought_is_left_to_this_node_where_it_may_not_be_answered() -> None:
    ended = outcomes_of(carried(), KEYS, dimensions=DIMENSIONS, imports=False)

    assert [at for at, each in enumerate(ended) if each is None] == [2]


@given(st.permutations(range(4)))
def test_rows_that_were_exchanged_are_left_to_this_node(order: list[int]) -> None:
    records = carried().records
    exchanged = carried(records=[records[at] for at in order])

    assert [at for at, each in enumerate(found(exchanged)) if each is not None] == [
        at for at, came in enumerate(order) if at == came
    ]


@given(st.data())
def test_a_damaged_row_is_never_answered(data: st.DataObject) -> None:
    record = bytearray(carried().records[0])
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))

    assert found(carried(records=[bytes(record), *carried().records[1:]]))[0] is None


@pytest.mark.parametrize("fields", [{"records": [b""] * 3}, {"sources": [1] * 5}])
def test_an_answer_of_another_length_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidResponse, match="for 4 inputs"):
        found(carried(**fields))
