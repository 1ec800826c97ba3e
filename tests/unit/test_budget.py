"""What warming may spend in any hour."""

from hypothesis import given
from hypothesis import strategies as st

from embedkeep.node.budget import HOUR_S, SLOT_S, Budget

steps = st.lists(st.tuples(st.floats(0, 2000), st.floats(0, 1)), max_size=40)


@given(steps, st.floats(0, 1000))
def test_no_hour_holds_more_than_the_budget(
    steps: list[tuple[float, float]], budget_s: float
) -> None:
    """Whoever spends no more than is left, whenever it is."""
    budget, now_s = Budget(), 0.0
    spent: list[tuple[float, float]] = []
    for wait_s, part in steps:
        now_s += wait_s
        seconds = max(0.0, budget.left_s(budget_s, now_s=now_s)) * part
        budget.spend(seconds, now_s=now_s)
        spent.append((now_s, seconds))

    for end_s, _ in spent:
        within = sum(seconds for at_s, seconds in spent if end_s - HOUR_S < at_s <= end_s)
        assert within <= budget_s * (1 + 1e-9)


@given(st.floats(0, 1e6), st.floats(0, 1000))
def test_an_hour_and_a_minute_later_all_is_there_again(now_s: float, seconds: float) -> None:
    budget = Budget()
    budget.spend(seconds, now_s=now_s)

    assert budget.left_s(1000, now_s=now_s) == 1000 - seconds
    assert budget.left_s(1000, now_s=now_s + HOUR_S + SLOT_S) == 1000


def test_a_budget_that_sank_leaves_less_than_nothing() -> None:
    budget = Budget()
    budget.spend(10, now_s=0)

    assert budget.left_s(4, now_s=1) == -6
