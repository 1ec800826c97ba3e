import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from embedkeep.config import NodeConfig
from embedkeep.errors import InvalidResponse
from embedkeep.node.space import Space, agreement_key, decode, drift, encode, from_description
from embedkeep.v1 import embedder_pb2

Rows = Sequence[Sequence[float]] | NDArray[np.float32]

CANARIES = [[1.0, 0.0], [0.6, 0.8]]


def a_space(canaries: Rows = CANARIES, *, fingerprint: str = "fp") -> Space:
    rows = np.asarray(canaries, np.float32)
    return Space(
        fingerprint=fingerprint,
        dimensions=rows.shape[1],
        max_tokens=256,
        normalized=True,
        min_canary_cosine=0.9999,
        canaries=rows,
    )


def a_config(**fields: object) -> NodeConfig:
    return NodeConfig.model_validate(
        {"name": "docs", "model": {"name": "m"}, "embedder": {"address": "e:1"}} | fields
    )


spaces = st.builds(
    Space,
    fingerprint=st.text(min_size=1),
    dimensions=st.just(3),
    max_tokens=st.integers(0, 2**31),
    normalized=st.booleans(),
    min_canary_cosine=st.floats(0, 1),
    canaries=arrays.arrays(np.uint32, st.tuples(st.integers(1, 4), st.just(3))).map(
        lambda bits: bits.view(np.float32)
    ),
)


def test_an_embedder_that_computes_the_same_may_join() -> None:
    assert drift(a_space(), a_space()) is None


def test_low_bits_may_differ() -> None:
    """Another device rounds otherwise."""
    nearly = np.nextafter(np.array(CANARIES, np.float32), np.float32(2))

    assert drift(a_space(), a_space(nearly)) is None


def test_another_length_is_no_drift() -> None:
    assert drift(a_space(), a_space(np.array(CANARIES, np.float32) * 3)) is None


def test_another_fingerprint_is_drift_that_says_how_to_accept_it() -> None:
    why = drift(a_space(fingerprint="old"), a_space(fingerprint="new"))

    assert why is not None
    assert "fingerprint is new" in why
    assert "filled under old" in why
    assert "spec.model.revision" in why


@pytest.mark.parametrize(
    "canaries",
    [
        pytest.param([[1, 0], [0.62, 0.7846]], id="one canary lies a little off"),
        pytest.param([[-1, 0], [0.6, 0.8]], id="one canary is turned round"),
        pytest.param([[0.6, 0.8], [1, 0]], id="the canaries are swapped"),
        pytest.param([[0, 0], [0.6, 0.8]], id="one canary is zero"),
        pytest.param([[np.nan, 0], [0.6, 0.8]], id="one canary is NaN"),
        pytest.param([[np.inf, 0], [0.6, 0.8]], id="one canary is infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_canary_off_its_place_is_drift(canaries: Rows) -> None:
    why = drift(a_space(), a_space(canaries))

    assert why is not None
    assert "0.9999 is needed" in why


def test_nan_among_the_agreed_canaries_is_drift_too() -> None:
    broken = a_space([[np.nan, 0], [0.6, 0.8]])

    assert drift(broken, a_space()) is not None
    assert drift(broken, broken) is not None


@pytest.mark.parametrize("canaries", [[[1, 0]], [[1, 0, 0], [0.6, 0.8, 0]]])
def test_other_texts_or_dimensions_are_drift(canaries: Rows) -> None:
    assert "canaries are" in (drift(a_space(), a_space(canaries)) or "")


def test_what_was_agreed_decides_how_close_is_close_enough() -> None:
    near = a_space([[1, 0], [0.62, 0.7846]])

    assert drift(replace(a_space(), min_canary_cosine=0.99), near) is None
    assert drift(a_space(), replace(near, min_canary_cosine=0.5)) is not None


@given(space=spaces)
def test_an_agreement_comes_back_from_valkey_as_it_was(space: Space) -> None:
    back = decode(encode(space))

    assert back == space
    assert back.canaries.tobytes() == space.canaries.tobytes()
    assert back.canaries.shape == space.canaries.shape


WHOLE = json.loads(encode(a_space()))
CHANGES: list[dict[str, object]] = [
    {"dimensions": 0},
    {"dimensions": 3},
    {"dimensions": None},
    {"dimensions": float("inf")},
    {"max_tokens": "many"},
    {"canaries": "!"},
    {"canaries": "AAAA"},
    {"canaries": None},
    {"min_canary_cosine": []},
]


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'"text"',
        *(
            pytest.param(
                json.dumps({k: v for k, v in WHOLE.items() if k != gone}).encode(),
                id=f"without {gone}",
            )
            for gone in WHOLE
        ),
        *(pytest.param(json.dumps(WHOLE | change).encode(), id=str(change)) for change in CHANGES),
    ],
)
def test_what_is_no_agreement_is_refused(record: bytes) -> None:
    with pytest.raises(InvalidResponse, match="agreement in Valkey cannot be read"):
        decode(record)


def described(**fields: object) -> embedder_pb2.DescribeResponse:
    rows = np.asarray(CANARIES, np.float32)
    whole: dict[str, object] = {
        "fingerprint": "fp",
        "dimensions": 2,
        "max_tokens": 256,
        "normalized": True,
        "canaries": rows.tobytes(),
        "min_canary_cosine": 0.9999,
    }
    return embedder_pb2.DescribeResponse(**(whole | fields))  # type: ignore[arg-type]  # fields of the message


def test_an_embedders_description_becomes_its_space() -> None:
    space = from_description(described())

    assert space == a_space()
    assert space.canaries.tolist() == a_space().canaries.tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fingerprint": ""}, "without fingerprint or dimensions"),
        ({"dimensions": 0}, "without fingerprint or dimensions"),
        ({"canaries": b""}, "canaries are 0 bytes"),
        ({"canaries": bytes(12)}, "canaries are 12 bytes: no rows of 2 float32"),
    ],
)
def test_a_description_that_does_not_fit_itself_is_refused(
    fields: dict[str, object], expected: str
) -> None:
    with pytest.raises(InvalidResponse, match=expected):
        from_description(described(**fields))


def test_nodes_of_one_cache_look_for_the_agreement_in_one_place() -> None:
    assert agreement_key(a_config()) == agreement_key(a_config(l1_bytes=0, name="other"))


def test_another_model_is_agreed_on_elsewhere() -> None:
    configs = [
        a_config(),
        a_config(model={"name": "other"}),
        a_config(model={"name": "m", "revision": "r2"}),
        a_config(agreement="m onnx float32"),
        a_config(agreement="m torch float16"),
    ]

    assert len({agreement_key(config) for config in configs}) == len(configs)


def test_new_prompts_do_not_start_a_new_agreement() -> None:
    """They change keys, not what the model computes."""
    with_prompt = a_config(model={"name": "m", "prompts": {"query": "q: "}})

    assert agreement_key(with_prompt) == agreement_key(a_config())
