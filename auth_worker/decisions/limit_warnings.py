"""What is said of limits before they are used up, in answers and to webhooks; pure."""

import math
from dataclasses import dataclass

from auth_worker.decisions.meters import Meter
from auth_worker.principals.limit_rules import Limit
from protocol.wire.messages import LimitWarning


@dataclass(frozen=True, slots=True)
class LimitEvent:
    """The settled use of a limit has passed a threshold.

    Attributes:
        end_user: Whose use it is under a template; otherwise empty.
        percent: The threshold; 100 for a soft limit that is used up.
        amount: With a raise and what was carried over.
    """

    limit: Limit
    end_user: str
    percent: int
    used: int
    amount: int


def warning_of(meter: Meter, now_s: float, wall_s: float) -> LimitWarning:
    """The warning of a meter that has passed a threshold."""
    limit = meter.limit
    resets_s = meter.reset_s(now_s, wall_s)
    return LimitWarning(
        limit_id=limit.limit_id,
        name=limit.name,
        holder=limit.holder,
        measure=limit.measure,
        window=limit.window.kind,
        amount=meter.amount,
        used=max(0, meter.total),
        percent=percent_of(meter, meter.total),
        is_hard=limit.is_hard,
        resets_s=None if math.isinf(resets_s) else resets_s,
    )


def event_of(meter: Meter, used: int) -> LimitEvent:
    """What a meter has to tell that has passed another threshold, when so much was used."""
    return LimitEvent(
        limit=meter.limit,
        end_user=meter.end_user,
        percent=percent_of(meter, used),
        used=used,
        amount=meter.amount,
    )


def percent_of(meter: Meter, used: int) -> int:
    """The highest threshold that was passed; 100 is one of a limit that is used up."""
    passed = [
        percent
        for percent in (*meter.limit.thresholds, 100)
        if used * 100 >= meter.amount * percent
    ]
    return max(passed, default=0)
