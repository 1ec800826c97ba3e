"""Dividing a batch into runs of the model."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from embedkeep.embedder.backends import runs


def cost(made: list[list[int]], lengths: list[int], run_tokens: int) -> int:
    return sum(len(run) * max(lengths[row] for row in run) + run_tokens for run in made)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(0, 500))
def test_each_row_runs_once_and_no_run_is_beyond_its_limit(
    lengths: list[int], run_tokens: int
) -> None:
    made = runs(lengths, run_tokens=run_tokens, most_tokens=700)

    assert sorted(row for run in made for row in run) == list(range(len(lengths)))
    for run in made:
        assert len(run) == 1 or len(run) * max(lengths[row] for row in run) <= 700


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 100))
def test_no_other_division_costs_less(lengths: list[int], run_tokens: int) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    n = len(order)
    cheapest = min(
        cost([order[a:b] for a, b in zip((0, *cuts), (*cuts, n), strict=True)], lengths, run_tokens)
        for count in range(n)
        for cuts in combinations(range(1, n), count)
    )

    made = runs(lengths, run_tokens=run_tokens, most_tokens=10**9)

    assert cost(made, lengths, run_tokens) == cheapest


def test_without_a_cost_for_runs_only_rows_of_one_length_share_one() -> None:
    assert runs([5, 3, 5, 4, 3], run_tokens=0) == [[1, 4], [3], [0, 2]]
