import numpy as np
import pytest

from embedkeep.pairs import cosines, differences, faults, slack

BOUND = 0.9999


def rows(*values: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_what_no_model_returns_is_named() -> None:
    given = rows([0.6, 0.8], [np.nan, 1], [np.inf, 0], [0, 0], [3e38, 3e38], [0, 2])

    assert faults(given, normalized=False, min_cosine=BOUND).keys() == {1, 2, 3}
    found = faults(given, normalized=True, min_cosine=BOUND)
    assert found.keys() == {1, 2, 3, 4, 5}
    assert found[3] == "its vector has length 0"
    assert found[5] == "its vector has length 2; the model's have length 1"


def test_a_length_may_differ_as_much_as_a_direction() -> None:
    off = slack(BOUND)

    within, beyond = rows([1 + 0.9 * off, 0]), rows([1 + 1.1 * off, 0])

    assert not faults(within, normalized=True, min_cosine=BOUND)
    assert faults(beyond, normalized=True, min_cosine=BOUND)
    assert not differences(within, rows([1, 0]), min_cosine=BOUND)
    assert "scaled" in differences(beyond, rows([1, 0]), min_cosine=BOUND)[0]


def test_a_row_that_points_elsewhere_is_told_with_its_cosine() -> None:
    found = differences(
        rows([1, 0], [0.9, 0.435], [np.nan, 0]),
        rows([1, 0.001], [1, 0], [1, 0]),
        min_cosine=BOUND,
    )

    assert found.keys() == {1, 2}
    assert "cosine 0.900" in found[1]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_a_cosine_does_not_depend_on_length(scale: float) -> None:
    given = rows([3, 4]) * np.float32(scale)

    assert cosines(given, rows([4, 3])) == pytest.approx(0.96)
    assert cosines(rows([0, 0]), rows([4, 3])) == 0
