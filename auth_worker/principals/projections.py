"""Where the use of a limit leads at the pace of its window so far; pure."""

from typing import Final, NamedTuple

DAY_S: Final = 86_400.0
MIN_ELAPSED_S: Final = 3600.0
"""The pace of the first minutes says nothing about a day: at least so much counts as over."""


class Projection(NamedTuple):
    """What follows if it goes on like this.

    Attributes:
        daily_burn: What is used in a day.
        projected: What will have been used when the window ends; None where it has no end.
        days_left: Until nothing is left; 0.0 when it is so, None when it never will be, or not
            within this window.
    """

    daily_burn: int
    projected: int | None
    days_left: float | None


def project(
    used: int,
    amount: int,
    *,
    began_s: float,
    ends_s: float | None,
    now_s: float,
    span_s: float | None = None,
) -> Projection:
    """The projection of a window.

    Args:
        used: What was used since it began.
        amount: What may be used.
        began_s: When counting began, Unix seconds, as are the others.
        ends_s: None where the window has no end.
        now_s: Now.
        span_s: Seconds in which it was used at most, of a window that slides.
    """
    elapsed_s = max(MIN_ELAPSED_S, now_s - began_s)
    if span_s is not None:
        elapsed_s = min(span_s, elapsed_s)
    pace = used / elapsed_s
    left_s = None if ends_s is None else max(0.0, ends_s - now_s)
    projected = None if left_s is None else used + round(pace * left_s)
    days_left: float | None = None
    if used >= amount:
        days_left = 0.0
    elif pace > 0:
        lasts_s = (amount - used) / pace
        if left_s is None or lasts_s <= left_s:
            days_left = lasts_s / DAY_S
    return Projection(round(pace * DAY_S), projected, days_left)
