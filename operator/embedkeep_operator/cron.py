"""Schedules of five cron fields, as CronJobs of Kubernetes take them. Pure.

A field is a list of ``*``, ``?`` (the same), a number, a name (JAN, MON), a range ``a-b``, each
with a step ``/n`` behind it where it is wanted; ``a/n`` goes up to the field's end. Sunday is 0.
Where both day fields are given, a day that fits either of them will do.

Written here because a schedule must mean the same on one machine and on Kubernetes: of the
libraries for Python each knows a grammar of its own (seconds, ``L``, ``#``, Sunday as 7).

Source of the grammar: github.com/robfig/cron, v3, `ParseStandard`, which Kubernetes uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

YEARS_AHEAD: Final = 9
"""Within them every day of the calendar comes: 29 February is up to eight years away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    """Of its numbers, from the first on."""

    def number(self, text: str) -> int:
        """What *text* says.

        Raises:
            ValueError: No number of this field.
        """
        lower = text.lower()
        value = self.first + self.names.index(lower) if lower in self.names else None
        if value is None and text.isascii() and text.isdigit():
            value = int(text)
        if value is None or not self.first <= value <= self.last:
            raise ValueError(f"{self.name}: {self.first} to {self.last} are allowed, got {text!r}")
        return value


_MINUTE: Final = _Field(name="minute", first=0, last=59)
_HOUR: Final = _Field(name="hour", first=0, last=23)
_DAY: Final = _Field(name="day of month", first=1, last=31)
_MONTH: Final = _Field(
    name="month", first=1, last=12,
    names=("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
)  # fmt: skip
_WEEKDAY: Final = _Field(
    name="day of week", first=0, last=6, names=("sun", "mon", "tue", "wed", "thu", "fri", "sat")
)
_FIELDS: Final = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """When something is due, to the minute."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Sunday is 0."""
    either: bool
    """A day that fits one of the two day fields is enough: neither of them is ``*``."""

    def after(self, moment: datetime) -> datetime | None:
        """The first time after *moment*, in its time zone. None: there is none.

        Args:
            moment: UTC, as on Kubernetes; a zone whose clocks change would skip or repeat times.
        """
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        hours, minutes = sorted(self.hours), sorted(self.minutes)
        while day.year <= moment.year + YEARS_AHEAD:
            if self._takes_day(day):
                for hour in hours:
                    for minute in minutes:
                        due = day.replace(hour=hour, minute=minute)
                        if due >= start:
                            return due
            day += timedelta(days=1)
        return None

    def _takes_day(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_weekday if self.either else by_date and by_weekday


def parse(text: str) -> Cron:
    """The schedule that *text* says.

    Raises:
        ValueError: It says none; names the field.
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ValueError(f"must be five cron fields, such as '*/30 * * * *'; got {len(parts)}")
    found: Mapping[str, tuple[frozenset[int], bool]] = {
        each.name: _values(part, each) for part, each in zip(parts, _FIELDS, strict=True)
    }
    days, any_day = found[_DAY.name]
    weekdays, any_weekday = found[_WEEKDAY.name]
    return Cron(
        minutes=found[_MINUTE.name][0],
        hours=found[_HOUR.name][0],
        days=days,
        months=found[_MONTH.name][0],
        weekdays=weekdays,
        either=not (any_day or any_weekday),
    )


def _values(text: str, of: _Field) -> tuple[frozenset[int], bool]:
    """What a field allows, and whether it says ``*``."""
    found: set[int] = set()
    every = False
    for part in text.split(","):
        span, slash, by = part.partition("/")
        step = _step(by, of) if slash else 1
        if span in {"*", "?"}:
            first, last = of.first, of.last
            every = every or step == 1
        else:
            low, dash, high = span.partition("-")
            first = of.number(low)
            last = of.number(high) if dash else of.last if slash else first
            if first > last:
                raise ValueError(f"{of.name}: {span} ends before it begins")
        found.update(range(first, last + 1, step))
    return frozenset(found), every


def _step(text: str, of: _Field) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ValueError(f"{of.name}: a step must be a number from 1, got {text!r}")
    return int(text)
