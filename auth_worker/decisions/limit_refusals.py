"""Which limit a refusal names, and in which words: the tightest, with its figures; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from auth_worker.decisions.meters import Meter, SlidingMeter
from auth_worker.decisions.plans import Short
from auth_worker.decisions.sliced_meters import FixedMeter
from auth_worker.principals.limit_rules import MICROS_PER_UNIT, Holder, Limit, Measure
from protocol.errors import ErrorCode
from protocol.wire.messages import LimitRefusal

SETTLEMENT_RETRY_S: Final = 5.0
"""Advice when only the end of a running request can make room: nobody knows when it comes."""

_WHO: Final[dict[Holder, str]] = {
    "end_user": "this end user",
    "key": "this key",
    "user": "the user of this key",
    "team": "the team of this key",
    "house": "this server",
}
_UNITS: Final[dict[Measure, str]] = {
    "requests": "requests",
    "tokens": "tokens",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "completion tokens",
    "money": "of money",
    "parallel": "requests at a time",
}
_PER: Final = {
    "minute": "per minute",
    "hour": "per hour",
    "day": "per day",
    "calendar_day": "per calendar day",
    "calendar_week": "per calendar week",
    "calendar_month": "per calendar month",
    "calendar_year": "per calendar year",
    "custom": "per window",
    "total": "in total",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a reservation doesn't fit.

    Attributes:
        code: `rate_limit_exceeded`, `insufficient_quota`, `budget_exceeded`, or `permission_denied`
            for a request that has no price.
        retry_after_s: When trying again makes sense; None = not soon, or never.
        limit: The limit that it is about, with its figures.
        meter: Of that limit.
        is_unpriced: The model has no price.
    """

    code: ErrorCode
    message: str
    retry_after_s: float | None = None
    limit: LimitRefusal | None = None
    meter: Meter | None = None
    is_unpriced: bool = False

    @property
    def is_used_up(self) -> bool:
        """Whether it is because of what was used, not of what runs or is asked for."""
        return self.limit is not None and self.limit.source == "used"


@dataclass(frozen=True, slots=True)
class _Cause:
    """One limit without room.

    Attributes:
        wait_s: How long it keeps the request out; infinite = forever, or until somebody acts.
        is_in_flight: Only running requests hold what is left.
    """

    short: Short
    wait_s: float
    is_in_flight: bool


def refuse(shorts: Sequence[Short], now_s: float, wall_s: float) -> Refusal:
    """The refusal by the tightest limit: the one that keeps the request out for longest.

    Args:
        shorts: The limits without room, at least one; of equals the first is named.
        now_s: Monotonic.
        wall_s: Unix seconds.
    """
    causes = [_cause(short, now_s, wall_s) for short in shorts]
    worst = max(causes, key=lambda cause: cause.wait_s)
    return _refusal(worst, wall_s)


def refuse_parallel(key_id: str, most_parallel: int, num_running: int) -> Refusal:
    """A key's own bound of requests at a time."""
    limit = LimitRefusal(
        limit_id=f"{key_id}/max_parallel_requests",
        name="max_parallel_requests",
        holder="key",
        measure="parallel",
        window="total",
        amount=most_parallel,
        used=0,
        reserved=num_running,
        asked=1,
        source="in_flight" if most_parallel else "request",
    )
    code = ErrorCode.RATE_LIMIT_EXCEEDED
    if most_parallel == 0:
        return Refusal(code, "This key may have no request running.", None, limit)
    message = (
        f"Rate limit reached: this key may have {most_parallel} requests running at a time, and"
        " as many are. Try again when one of them has ended."
    )
    return Refusal(code, message, SETTLEMENT_RETRY_S, limit)


def _cause(short: Short, now_s: float, wall_s: float) -> _Cause:
    frees_s = short.meter.frees_s(now_s, wall_s, short.need)
    if frees_s is None:
        return _Cause(short, SETTLEMENT_RETRY_S, is_in_flight=True)
    return _Cause(short, frees_s, is_in_flight=False)


def _refusal(cause: _Cause, wall_s: float) -> Refusal:
    meter, need = cause.short
    is_over_alone = need > meter.amount and not _is_closed(meter)
    frees_s = None if cause.is_in_flight or math.isinf(cause.wait_s) else cause.wait_s
    slides = isinstance(meter, SlidingMeter)
    code = _code(meter.limit, slides=slides, is_in_flight=cause.is_in_flight)
    may_retry = not math.isinf(cause.wait_s) and (
        cause.is_in_flight or code is ErrorCode.RATE_LIMIT_EXCEEDED
    )
    source: Literal["request", "used", "in_flight"] = "used"
    if cause.is_in_flight:
        source = "in_flight"
    elif is_over_alone:
        source = "request"
    limit = meter.limit
    return Refusal(
        code,
        _message(cause, is_over_alone=is_over_alone, frees_s=frees_s, wall_s=wall_s),
        cause.wait_s if may_retry else None,
        LimitRefusal(
            limit_id=limit.limit_id,
            name=limit.name,
            holder=limit.holder,
            measure=limit.measure,
            window=limit.window.kind,
            amount=meter.amount,
            used=max(0, meter.total),
            reserved=meter.reserved,
            asked=need,
            source=source,
            frees_s=frees_s,
        ),
        meter,
    )


def _code(limit: Limit, *, slides: bool, is_in_flight: bool) -> ErrorCode:
    if limit.measure == "money":
        return ErrorCode.BUDGET_EXCEEDED
    if slides or is_in_flight or limit.measure == "parallel":
        return ErrorCode.RATE_LIMIT_EXCEEDED
    return ErrorCode.INSUFFICIENT_QUOTA


def _message(cause: _Cause, *, is_over_alone: bool, frees_s: float | None, wall_s: float) -> str:
    meter, need = cause.short
    limit = meter.limit
    who, per = _WHO[limit.holder], _PER[limit.window.kind]
    if limit.measure == "parallel":
        what = f"{who} may have {meter.amount} requests running at a time"
        per = ""
    elif limit.measure == "requests":
        what = f"{who} may send {meter.amount} requests {per}"
    elif limit.measure == "money":
        what = f"{who} may spend {money(meter.amount)} {per}"
    else:
        what = f"{who} may use {meter.amount} {_UNITS[limit.measure]} {per}"
    named = "" if "/" in limit.limit_id else f" (limit '{limit.name}', {limit.limit_id})"
    if _is_closed(meter):
        when = "is over" if frees_s is None else f"begins at {_moment(wall_s + frees_s)}"
        return f"{_headline(limit)}: nothing may be used, because its window {when}{named}."
    if is_over_alone:
        return _over_alone(limit, what, named, need, meter.amount)
    figures = _figures(meter, need)
    way_out = _way_out(cause, frees_s, wall_s)
    return f"{_headline(limit)}: {what}{named}{figures}. {way_out}"


def _headline(limit: Limit) -> str:
    if limit.measure == "money":
        return "Budget exceeded"
    if limit.window.slides or limit.measure == "parallel":
        return "Rate limit reached"
    return "Quota exceeded"


def _over_alone(limit: Limit, what: str, named: str, need: int, amount: int) -> str:
    if limit.measure in ("requests", "parallel"):
        return f"{what[0].upper()}{what[1:]}{named}: none at all."
    asked = money(need) if limit.measure == "money" else f"{need} {_UNITS[limit.measure]}"
    verb = "cost" if limit.measure == "money" else "use"
    return (
        f"This request may {verb} up to {asked} (its prompt, counted by bytes until it is"
        f" tokenised, and its completion), but {what}{named}."
        " Shorten the prompt, ask for fewer completion tokens or raise the limit."
    )


def _figures(meter: Meter, need: int) -> str:
    limit = meter.limit
    if limit.measure in ("requests", "parallel"):
        return ""
    say = money if limit.measure == "money" else str
    were = "was" if limit.measure == "money" else "were"
    verb = "spent" if limit.measure == "money" else "used"
    is_or_are = "is" if limit.measure == "money" else "are"
    return (
        f"; {say(meter.total)} {were} {verb}, {say(meter.reserved)} {is_or_are} reserved by running"
        f" requests and {say(need)} more {were} asked for"
    )


def _way_out(cause: _Cause, frees_s: float | None, wall_s: float) -> str:
    if cause.is_in_flight:
        return f"Try again in {SETTLEMENT_RETRY_S:.1f} s, when running requests have ended."
    if frees_s is None:
        return "Ask an administrator to raise it."
    if isinstance(cause.short.meter, FixedMeter):
        return f"A new window begins at {_moment(wall_s + frees_s)}."
    return f"Try again in {frees_s:.1f} s."


def _is_closed(meter: Meter) -> bool:
    return isinstance(meter, FixedMeter) and not meter.is_open


def _moment(wall_s: float) -> str:
    try:
        return datetime.fromtimestamp(math.ceil(wall_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "a time beyond the calendar"


def money(micros: int) -> str:
    """An amount in the deployment's one currency, to the cent where that is exact."""
    sign, whole = ("-" if micros < 0 else ""), abs(micros)
    units, rest = divmod(whole, MICROS_PER_UNIT)
    digits = f"{rest:06d}"
    return f"{sign}{units}.{digits[:2]}{digits[2:].rstrip('0')}"
