"""Where fixed windows begin and end: calendar days to years in a time zone, custom spans; pure."""

import math
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from auth_worker.principals.limit_rules import Limit, Window

_DAYS_A_WEEK: Final = 7


class Span(NamedTuple):
    """One window on the wall clock, in Unix seconds.

    Attributes:
        begins_s: The first moment in it.
        ends_s: The first moment after it; infinite for one that never ends.
        is_open: Whether anything may be used in it; not before a custom window begins.
    """

    begins_s: float
    ends_s: float
    is_open: bool = True


def span_at(window: Window, wall_s: float) -> Span:
    """The window that a moment lies in; windows of one kind follow each other without gaps.

    Calendar windows begin at the first moment of a local day, so they are an hour shorter or
    longer where summer time begins or ends in them.

    Raises:
        ValueError: The window slides, and so has no begin.
        ZoneInfoNotFoundError: There is no such time zone.
    """
    if window.kind == "total":
        return Span(-math.inf, math.inf)
    if window.kind == "custom":
        return _custom_span(window, wall_s)
    if window.slides:
        raise ValueError(f"A window of kind {window.kind} slides.")
    # Whole seconds: a fraction would be rounded, maybe into the next day.
    local = datetime.fromtimestamp(math.floor(wall_s), _zone(window.time_zone)).date()
    first, after = _DATES[window.kind](local)
    return Span(_begin_of(first, window.time_zone), _begin_of(after, window.time_zone))


def first_without_zone(limits: Iterable[Limit]) -> Limit | None:
    """The first limit whose time zone this machine doesn't know: no window of it can be found."""
    for limit in limits:
        try:
            _zone(limit.window.time_zone)
        except ZoneInfoNotFoundError:
            return limit
    return None


def _custom_span(window: Window, wall_s: float) -> Span:
    begins_s = float(window.starts_at or 0)
    if wall_s < begins_s:
        return Span(-math.inf, begins_s, is_open=False)
    if not window.length_s:
        return Span(begins_s, math.inf)
    begins_s += (wall_s - begins_s) // window.length_s * window.length_s
    return Span(begins_s, begins_s + window.length_s)


@lru_cache(maxsize=4096)
def _begin_of(day: date, time_zone: str) -> float:
    # Where clocks skip midnight this is the moment of the change (PEP 495: `fold` 0 reads a time
    # that doesn't exist by the offset before it); where midnight comes twice, the first one.
    return datetime(day.year, day.month, day.day, tzinfo=_zone(time_zone)).timestamp()


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _day(day: date) -> tuple[date, date]:
    return day, day + timedelta(days=1)


def _week(day: date) -> tuple[date, date]:
    monday = day - timedelta(days=day.weekday())
    return monday, monday + timedelta(days=_DAYS_A_WEEK)


def _month(day: date) -> tuple[date, date]:
    first = day.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


def _year(day: date) -> tuple[date, date]:
    return date(day.year, 1, 1), date(day.year + 1, 1, 1)


_DATES: Final = {
    "calendar_day": _day,
    "calendar_week": _week,
    "calendar_month": _month,
    "calendar_year": _year,
}
