"""Schedules of five fields, against what they mean."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.cron import parse

moments = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    max_value=datetime(2090, 1, 1),  # noqa: DTZ001  # as above
    timezones=st.just(UTC),
)


def a_field(first: int, last: int) -> st.SearchStrategy[str]:
    """Any spelling of a field."""
    number = st.integers(first, last)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    step = st.integers(1, last).map(lambda by: f"/{by}")
    whole = st.sampled_from(["*", "?"])
    part = st.one_of(
        whole, number.map(str), span,
        st.tuples(st.one_of(whole, number.map(str), span), step).map("".join),
    )  # fmt: skip
    return st.lists(part, min_size=1, max_size=3).map(",".join)


fields = st.tuples(a_field(0, 59), a_field(0, 23), a_field(1, 31), a_field(1, 12), a_field(0, 6))


def allowed(field: str, first: int, last: int) -> set[int]:
    """The numbers of a field, one by one."""
    found = set()
    for part in field.split(","):
        span, _, by = part.partition("/")
        low, _, high = span.partition("-")
        if low in "*?":
            low, high = str(first), str(last)
        until = int(high or (last if by else low))
        found |= {n for n in range(int(low), until + 1) if (n - int(low)) % int(by or 1) == 0}
    return found


def is_every(field: str) -> bool:
    return any(part in {"*", "?", "*/1", "?/1"} for part in field.split(","))


def fits(parts: tuple[str, str, str, str, str], moment: datetime) -> bool:
    """Whether a minute is meant, told without the parser."""
    minute, hour, day, month, weekday = parts
    by_date = moment.day in allowed(day, 1, 31)
    by_weekday = (moment.weekday() + 1) % 7 in allowed(weekday, 0, 6)
    either = not is_every(day) and not is_every(weekday)
    return (
        moment.minute in allowed(minute, 0, 59)
        and moment.hour in allowed(hour, 0, 23)
        and moment.month in allowed(month, 1, 12)
        and (by_date or by_weekday if either else by_date and by_weekday)
    )


@given(fields, moments)
def test_the_next_time_is_later_and_meant(
    parts: tuple[str, str, str, str, str], moment: datetime
) -> None:
    due = parse(" ".join(parts)).after(moment)

    if due is not None:
        assert due > moment
        assert (due.second, due.microsecond) == (0, 0)
        assert fits(parts, due)


@given(fields, moments, st.integers(1, 3000))
def test_no_time_that_is_meant_is_left_out(
    parts: tuple[str, str, str, str, str], moment: datetime, ahead: int
) -> None:
    """Any later minute that fits is the next one or comes after it."""
    later = moment.replace(second=0, microsecond=0) + timedelta(minutes=ahead)
    due = parse(" ".join(parts)).after(moment)

    if fits(parts, later):
        assert due is not None
        assert due <= later


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "moment", "due"),
    [
        ("*/30 * * * *", "2026-11-24 21:59:59", "2026-11-24 22:00"),
        ("*/30 * * * *", "2026-11-24 22:00:00", "2026-11-24 22:30"),
        ("5/20 * * * *", "2026-11-24 22:06", "2026-11-24 22:25"),
        ("0 3 * * MON-fri", "2026-11-27 04:00", "2026-11-30 03:00"),
        ("0 0 13 * FRI", "2026-11-24 22:00", "2026-11-27 00:00"),
        ("0 0 29 feb *", "2097-01-01 00:00", "2104-02-29 00:00"),
        ("59 23 31 12 ?", "2026-12-31 23:59", "2027-12-31 23:59"),
        ("0 0 1 jan *", "2026-01-01 00:00", "2027-01-01 00:00"),
    ],
)  # fmt: skip
def test_schedules_mean_what_people_mean(schedule: str, moment: str, due: str) -> None:
    assert parse(schedule).after(at(moment)) == at(due)


def test_a_day_that_never_comes_is_never_due() -> None:
    assert parse("0 0 30 2 *").after(at("2026-11-24")) is None


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("* * * *", "five cron fields"),
        ("@hourly", "five cron fields"),
        ("60 * * * *", "minute: 0 to 59 are allowed, got '60'"),
        ("* 24 * * *", "hour: 0 to 23 are allowed, got '24'"),
        ("* * 0 * *", "day of month: 1 to 31 are allowed, got '0'"),
        ("* * * 13 *", "month: 1 to 12 are allowed, got '13'"),
        ("* * * * 7", "day of week: 0 to 6 are allowed, got '7'"),
        ("* * * * moon", "day of week: 0 to 6 are allowed, got 'moon'"),
        ("*/0 * * * *", "minute: a step must be a number from 1, got '0'"),
        ("*/ * * * *", "minute: a step must be a number from 1, got ''"),
        ("9-5 * * * *", "minute: 9-5 ends before it begins"),
        ("1,,2 * * * *", "minute: 0 to 59 are allowed, got ''"),
        ("-1 * * * *", "minute: 0 to 59 are allowed, got ''"),
        ("¹ * * * *", "minute: 0 to 59 are allowed, got '¹'"),
    ],
)
def test_what_is_no_schedule_is_named(schedule: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("*", r"\*")):
        parse(schedule)
