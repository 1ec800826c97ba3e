"""Plans as they lie in Valkey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.history import Asked, Fence
from embedkeep.plans import HEAD_BYTES, CorruptPlan, Plan, Planned, decode, encode

texts = st.text(min_size=1).filter(lambda text: text.encode(errors="ignore").decode() == text)
planned = st.builds(
    Planned,
    asked=st.builds(Asked, prompt=st.sampled_from(["", "query: ", "früge: "]), text=texts),
    worth=st.integers(0, 10_000).map(lambda part: part / 10_000),
)
numbers = st.integers(0, 2**48)
plans = st.builds(
    Plan,
    made_at_ms=numbers,
    expires_at_s=numbers,
    fence=st.builds(Fence, epoch=numbers, forgotten=numbers),
    predictor=st.just("popularity"),
    horizon_s=st.floats(0, 1e9),
    texts=st.lists(planned, max_size=20).map(tuple),
)


@given(plans)
def test_a_plan_is_read_as_it_was_written(plan: Plan) -> None:
    assert decode(encode(plan)) == plan


@given(plans, st.data())
def test_a_plan_with_any_damaged_byte_is_none(plan: Plan, data: st.DataObject) -> None:
    whole = encode(plan)
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))

    with pytest.raises(CorruptPlan):
        decode(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])


@given(plans, st.data())
def test_a_plan_that_is_cut_off_is_none(plan: Plan, data: st.DataObject) -> None:
    whole = encode(plan)

    with pytest.raises(CorruptPlan):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(plans, plans)
def test_plans_that_differ_are_told_apart_by_their_heads(one: Plan, other: Plan) -> None:
    heads = encode(one)[:HEAD_BYTES], encode(other)[:HEAD_BYTES]

    assert (heads[0] == heads[1]) == (one == other)
