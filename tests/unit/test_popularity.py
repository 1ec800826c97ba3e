"""What popularity alone makes of a history."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.history import Asked, Bucket, Count
from embedkeep.plans import Planned
from embedkeep.predictor.popularity import cut, rank

DAY_S = 86_400
NOW_S = 1_800_000_000.0
ABOUT = {"now_s": NOW_S, "width_s": DAY_S, "half_life_s": 7.0 * DAY_S, "horizon_s": 1.0 * DAY_S}


def a_bucket(days_ago: float, **times: int) -> Bucket:
    """The day that ended so many days ago, and how often texts were asked for in it."""
    return Bucket(
        place=0,
        start_s=int(NOW_S - (days_ago + 1) * DAY_S),
        counts=tuple(
            Count(asked=Asked(prompt="", text=text), least=count, most=count)
            for text, count in times.items()
        ),
    )


def ranked(*history: Bucket) -> dict[str, float]:
    """The worth of each text, in order."""
    return {each.asked.text: each.worth for each in rank(history, **ABOUT)}


days = st.floats(0, 60)
counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10_000), min_size=1)
histories = st.lists(st.tuples(days, counts), max_size=8).map(
    lambda parts: [a_bucket(ago, **times) for ago, times in parts]
)


@given(histories)
def test_worth_is_a_chance_and_falls_along_the_ranking(history: list[Bucket]) -> None:
    worth = list(ranked(*history).values())

    assert all(0 < each <= 1 for each in worth)
    assert worth == sorted(worth, reverse=True)


@given(histories, st.data())
def test_the_order_in_which_buckets_are_read_does_not_matter(
    history: list[Bucket], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(history))

    one, other = ranked(*history), ranked(*shuffled)

    assert one.keys() == other.keys()
    assert all(math.isclose(one[text], other[text]) for text in one)


@given(histories, days, st.integers(1, 100))
def test_another_ask_never_makes_a_text_worth_less(
    history: list[Bucket], ago: float, times: int
) -> None:
    before = ranked(*history).get("a", 0)

    assert ranked(*history, a_bucket(ago, a=times))["a"] >= before


@given(days, days, st.integers(1, 1000))
def test_of_texts_asked_as_often_the_later_one_is_worth_more(
    one: float, other: float, times: int
) -> None:
    late, early = sorted((one, other))
    found = ranked(a_bucket(late, a=times), a_bucket(early, b=times))

    assert found["a"] >= found["b"]


def test_an_ask_counts_half_after_a_half_life() -> None:
    """Worth is 1 - exp(-weight x what an ask is worth), so its logarithm halves."""
    found = ranked(a_bucket(0, new=1), a_bucket(7, old=1))

    assert math.log1p(-found["new"]) == pytest.approx(2 * math.log1p(-found["old"]))


def test_a_text_asked_daily_for_ever_is_worth_what_one_ask_a_day_means() -> None:
    """At one ask a day at random, at least one falls into a day with chance 1 - 1/e."""
    found = ranked(*(a_bucket(day, a=1) for day in range(365)))

    assert found["a"] == pytest.approx(1 - 1 / math.e, abs=0.01)


def test_one_ask_is_not_worth_a_computation_by_default_and_two_of_this_week_are() -> None:
    """What `PredictorConfig.min_worth` says of itself."""
    found = ranked(a_bucket(0, once=1), a_bucket(3, twice=2))

    assert found["once"] < 0.1 < found["twice"]


def test_what_may_be_anothers_does_not_count() -> None:
    doubtful = Count(asked=Asked(prompt="", text="doubtful"), least=1, most=50)
    bucket = Bucket(place=0, start_s=int(NOW_S - DAY_S), counts=(doubtful,))

    assert [each.worth for each in rank([bucket], **ABOUT)] == [ranked(a_bucket(0, sure=1))["sure"]]


def test_the_same_text_under_two_prompts_is_two() -> None:
    bucket = Bucket(
        place=0,
        start_s=int(NOW_S - DAY_S),
        counts=tuple(
            Count(asked=Asked(prompt=prompt, text="a"), least=times, most=times)
            for prompt, times in (("", 1), ("query: ", 2))
        ),
    )

    assert [each.asked.prompt for each in rank([bucket], **ABOUT)] == ["query: ", ""]


@given(histories, st.floats(0, 1), st.integers(1, 10), st.integers(1, 10))
def test_a_cut_keeps_the_first_that_are_worth_it_and_fit(
    history: list[Bucket], min_worth: float, max_texts: int, max_bytes: int
) -> None:
    whole = rank(history, **ABOUT)

    kept = cut(whole, min_worth=min_worth, max_texts=max_texts, max_bytes=max_bytes)

    assert list(kept) == whole[: len(kept)]
    assert len(kept) <= min(max_texts, max_bytes)  # each text here is a byte
    assert all(each.worth >= min_worth for each in kept)
    rest: list[Planned] = whole[len(kept) :]
    full = len(kept) in {max_texts, max_bytes}
    assert full or not rest or rest[0].worth < min_worth
