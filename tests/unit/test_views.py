import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from embedkeep.errors import InvalidRequest
from embedkeep.views import Encoding, View, apply, resolve

DIMENSIONS = 8

Rows = NDArray[np.float32]

bit_patterns = arrays.arrays(np.uint32, st.tuples(st.integers(0, 5), st.just(DIMENSIONS))).map(
    lambda bits: bits.view(np.float32)
)
ordinary = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.just(DIMENSIONS)),
    elements=st.floats(-100, 100, width=32),
)


def handed_out(
    rows: Rows,
    *,
    dimensions: int = 0,
    normalize: bool | None = None,
    encoding: Encoding = Encoding.FLOAT32,
    model_normalizes: bool = True,
) -> Rows:
    """What a caller reads of *rows*, as float32."""
    wanted = View(dimensions=dimensions, normalize=normalize, encoding=encoding)
    view = resolve(wanted, model_dimensions=DIMENSIONS, model_normalizes=model_normalizes)
    found = apply(view, rows)
    return found.astype(np.float32)


@given(rows=bit_patterns, model_normalizes=st.booleans())
def test_by_default_a_vector_is_handed_out_bit_for_bit(
    rows: Rows,
    model_normalizes: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    view = resolve(View(), model_dimensions=DIMENSIONS, model_normalizes=model_normalizes)

    assert apply(view, rows).tobytes() == rows.tobytes()


@given(rows=bit_patterns, dimensions=st.sampled_from([0, DIMENSIONS]))
def test_asking_a_normalizing_model_for_normalized_vectors_changes_no_bit(
    rows: Rows, dimensions: int
) -> None:
    view = resolve(
        View(dimensions=dimensions, normalize=True),
        model_dimensions=DIMENSIONS,
        model_normalizes=True,
    )

    assert apply(view, rows).tobytes() == rows.tobytes()


@given(rows=ordinary, dimensions=st.integers(1, DIMENSIONS - 1))
def test_vectors_are_cut_first_and_then_scaled_to_length_1(rows: Rows, dimensions: int) -> None:
    found = handed_out(rows, dimensions=dimensions)

    for row, got in zip(rows[:, :dimensions].astype(np.float64), found, strict=True):
        length = np.linalg.norm(row)
        np.testing.assert_allclose(got, row / length if length else row, rtol=1e-6, atol=1e-38)


def test_a_cut_vector_of_a_model_that_does_not_normalize_keeps_its_length() -> None:
    rows = np.arange(DIMENSIONS, dtype=np.float32).reshape(1, -1)

    found = handed_out(rows, dimensions=3, model_normalizes=False)

    assert found.tolist() == [[0, 1, 2]]


def test_a_cut_vector_can_be_had_unscaled() -> None:
    rows = np.full((1, DIMENSIONS), 0.5, np.float32)

    assert handed_out(rows, dimensions=2, normalize=False).tolist() == [[0.5, 0.5]]


def test_a_model_that_does_not_normalize_can_be_asked_to() -> None:
    rows = np.array([[3, 4, 0, 0, 0, 0, 0, 0]], np.float32)

    found = handed_out(rows, normalize=True, model_normalizes=False)

    np.testing.assert_allclose(found[0, :2], [0.6, 0.8], 1e-7)


def test_tiny_vectors_are_scaled_without_losing_their_direction() -> None:
    """Squares of such components are 0 in float32."""
    rows = np.full((1, DIMENSIONS), 1e-30, np.float32)

    found = handed_out(rows, normalize=True, model_normalizes=False)

    np.testing.assert_allclose(found, DIMENSIONS**-0.5, 1e-6)


@given(rows=ordinary)
def test_float16_is_rounded_to_nearest(rows: Rows) -> None:
    found = handed_out(rows, encoding=Encoding.FLOAT16, model_normalizes=False)

    assert found.tobytes() == rows.astype("<f2").astype(np.float32).tobytes()
    np.testing.assert_allclose(found, rows, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("dimensions", [0, 3])
def test_a_failed_row_stays_nan_and_its_neighbours_do_not_notice(
    encoding: Encoding, dimensions: int
) -> None:
    rows = np.full((3, DIMENSIONS), 0.25, np.float32)
    rows[1] = np.nan

    found = handed_out(rows, dimensions=dimensions, encoding=encoding)

    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(found[[0, 2]]).all()


def test_a_row_of_zeros_stays_zero() -> None:
    assert not handed_out(np.zeros((1, DIMENSIONS), np.float32), dimensions=2).any()


def test_rows_are_encoded_one_after_the_other_in_little_endian() -> None:
    rows = np.array([[1, 2, 0, 0, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0, 0, 0]], np.float32)
    view = resolve(
        View(dimensions=2, encoding=Encoding.FLOAT16),
        model_dimensions=DIMENSIONS,
        model_normalizes=False,
    )

    assert apply(view, rows).tobytes().hex() == "003c004000420044"


def test_what_is_stored_is_never_changed() -> None:
    rows = np.full((2, DIMENSIONS), 2.0, np.float32)
    rows.flags.writeable = False

    handed_out(rows, dimensions=4)

    assert (rows == 2.0).all()


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="this model has 8: ask for 1 to 8, or leave it out"):
        resolve(View(dimensions=9), model_dimensions=DIMENSIONS, model_normalizes=True)
