"""GET /v1/usage and /v1/budget/status: what a caller used, may use and has left."""

import time
from collections.abc import Sequence
from typing import Any, Final, cast, get_args

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.query import check_query, page_size, query_number, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json
from protocol.wire.messages import (
    LimitStanding,
    Standing,
    UsageBucket,
    UsageFound,
    UsageGroup,
    UsageRow,
)

router = APIRouter(route_class=GuardedRoute, tags=["usage"])

MICROS_PER_CENT: Final = 10_000
DAY_S: Final = 86_400
DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 3640
"""Of one question, a little less than ten years."""
DAYS_A_MONTH: Final = 30

_BUCKETS: Final[dict[str, tuple[UsageBucket, int]]] = {
    "hour": ("hour", 3600),
    "day": ("day", DAY_S),
    "total": ("", 0),
}
_GROUPS: Final = get_args(UsageGroup)
_COUNTS: Final = (
    *("num_requests", "prompt_tokens", "completion_tokens"),
    *("cached_tokens", "reasoning_tokens", "cost_micros"),
)
_PERMISSIONS: Final = (
    *("allowed_models", "allowed_endpoints", "allowed_ip_addresses", "blocked_ip_addresses"),
    *("enable_streaming", "enable_function_calling", "max_tokens_per_request"),
    *("max_parallel_requests", "may_name_end_users", "priority"),
)
_WINDOWS: Final = ("minute", "hour", "day")
_WHOM: Final = ("key_id", "user_id", "team_id", "end_user")


@router.get("/v1/usage")
async def read_usage(request: Request) -> Response:
    """The caller's record with what it may do and has left, and what it used, in rows.

    An administrator may name any key, user, team or end user, or ask about all.
    """
    check_query(
        request,
        *(*_WHOM, "model", "of", "by", "group_by"),
        *("since", "until", "after", "limit"),
    )
    whom = _whom(request)
    by = query_text(request, "by", one_of=tuple(_BUCKETS)) or "day"
    groups = _group_by(request)
    now = int(time.time())
    since, until = query_number(request, "since"), query_number(request, "until")
    limit, skip = page_size(request), query_number(request, "after") or 0
    is_of_all = query_text(request, "of", one_of=("all",)) == "all"
    auth, actor, request_id = (
        parts_of(request).auth,
        actor_of(request),
        request.state.request_id,
    )
    question = bridge.read_usage(
        f"{request_id}:usage",
        actor,
        **whom,
        model=parts_of(request).names.served(query_text(request, "model")),
        is_of_all=is_of_all,
        since_s=max(0, now - DEFAULT_DAYS * DAY_S) if since is None else since,
        until_s=now + 1 if until is None else until,
        bucket=_BUCKETS[by][0],
        group_by=groups,
        skip=skip,
        limit=limit,
    )
    found = await auth.administer(question, UsageFound)
    answer: dict[str, Any] = {"object": "usage"}
    if not is_of_all:
        standing = await auth.administer(
            bridge.read_standing(f"{request_id}:standing", actor, **whom), Standing
        )
        answer |= _record(standing)
    data = [_row(row, groups, _BUCKETS[by][1]) for row in found.rows]
    answer |= {
        "data": data,
        "has_more": found.has_more,
        "next": skip + len(data) if found.has_more else None,
    }
    return admin_json(answer)


@router.get("/v1/budget/status")
async def read_budget_status(request: Request) -> Response:
    """How much of each budget is spent and left, how fast, and where that leads."""
    check_query(request, *_WHOM)
    auth, actor, whom = parts_of(request).auth, actor_of(request), _whom(request)
    request_id, now = request.state.request_id, int(time.time())
    everything = bridge.read_usage(
        f"{request_id}:usage",
        actor,
        **whom,
        model="",
        is_of_all=False,
        since_s=max(0, now - MAX_DAYS * DAY_S),
        until_s=now + 1,
        bucket="",
        group_by=(),
        skip=0,
        limit=1,
    )
    spent = sum(row.cost_micros for row in (await auth.administer(everything, UsageFound)).rows)
    question = bridge.read_standing(f"{request_id}:standing", actor, **whom)
    standing = await auth.administer(question, Standing)
    budgets = [one for one in standing.limits if one.settings.measure == "money"]
    return admin_json({"object": "budget_status", "data": _status(budgets, spent, time.time())})


def cents(micros: int) -> int:
    """Micro-units in cents, rounded half up."""
    return (micros + MICROS_PER_CENT // 2) // MICROS_PER_CENT


def _whom(request: Request) -> dict[str, str]:
    return {name: query_text(request, name) for name in _WHOM}


def _group_by(request: Request) -> tuple[UsageGroup, ...]:
    text = request.query_params.get("group_by")
    names = ("model",) if text is None else tuple(filter(None, text[:200].split(",")))
    for name in names:
        if name not in _GROUPS:
            raise InvalidRequestError(
                f"`group_by` takes {', '.join(_GROUPS)} with commas.", param="group_by"
            )
    return cast(tuple[UsageGroup, ...], tuple(dict.fromkeys(names)))


def _row(row: UsageRow, groups: Sequence[UsageGroup], length_s: int) -> dict[str, Any]:
    """One row: its time, its groups, its counts."""
    record: dict[str, Any] = {}
    if length_s:
        record = {"start_time": row.begins_at, "end_time": row.begins_at + length_s}
    for group in groups:
        name = f"{group}_id" if group in ("key", "user", "team") else group
        record[name] = getattr(row, name)
    counts = {name: getattr(row, name) for name in _COUNTS}
    return {**record, **counts, "total_tokens": row.prompt_tokens + row.completion_tokens}


def _record(standing: Standing) -> dict[str, Any]:
    """Whose it is, what it may do, and where it stands."""
    limits = [_limit(one) for one in standing.limits]
    key = standing.key
    if key is None:
        return {"scopes": standing.scopes, "limits": limits}
    settings = key.settings
    names = ("owner", "user_id", "team_id", "role", "tags", "metadata", "expires_at")
    return {
        "api_key_id": key.key_id,
        "api_key_name": settings.name,
        "status": key.status,
        "closed_by": key.closed_by,
        **{name: getattr(settings, name) for name in names},
        "tenant": key.tenant_id,
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "total_requests": key.total_requests,
        "total_tokens": key.total_prompt_tokens + key.total_completion_tokens,
        "total_prompt_tokens": key.total_prompt_tokens,
        "total_completion_tokens": key.total_completion_tokens,
        "total_cost_cents": cents(key.total_cost_micros),
        "total_cost_micros": key.total_cost_micros,
        "rate_limits": rate_limits(standing.limits),
        "permissions": {name: getattr(settings, name) for name in _PERMISSIONS},
        "scopes": standing.scopes,
        "allowed_models": settings.allowed_models,
        "team_allowed_models": standing.team_allowed_models,
        "limits": limits,
    }


def rate_limits(limits: Sequence[LimitStanding]) -> dict[str, int | None]:
    """Requests a minute, hour and day that the key may send: the tightest of each.

    Those of some models or routes, and those of each of its end users, are among `limits` only.
    """

    def tightest(window: str) -> int | None:
        fitting = [
            one.amount
            for one in limits
            if one.settings.measure == "requests"
            and one.settings.window == window
            and one.settings.is_hard
            and one.settings.holder != "end_user"
            and one.settings.models is None
            and one.settings.endpoints is None
        ]
        return min(fitting, default=None)

    return {f"per_{window}": tightest(window) for window in _WINDOWS}


def _limit(one: LimitStanding) -> dict[str, Any]:
    settings = one.settings
    names = ("name", "holder", "holder_id", "measure", "window", "models", "endpoints", "is_hard")
    return {
        "id": one.limit_id,
        **{name: getattr(settings, name) for name in names},
        "amount": one.amount,
        "used": one.used,
        "reserved": one.reserved,
        "remaining": max(0, one.amount - one.used - one.reserved),
        "begins_at": one.begins_at,
        "ends_at": one.ends_at,
    }


def _status(budgets: Sequence[LimitStanding], spent: int, now_s: float) -> dict[str, Any]:
    """The budgets, what was spent in all, what they warn of, and the tightest outlook of all."""
    lasting = [one.days_left for one in budgets if one.days_left is not None]
    burn = max((one.daily_burn for one in budgets), default=0)
    return {
        "budgets": [_budget(one, now_s) for one in budgets],
        "total_usage_micros": spent,
        "total_usage": spent / 1_000_000,
        "warnings": [_warning(one) for one in budgets if one.passed or _is_exceeded(one)],
        "projections": {
            "daily_burn_rate": burn / 1_000_000,
            "projected_monthly": burn * DAYS_A_MONTH / 1_000_000,
            "days_remaining": min(lasting, default=None),
        },
    }


def _budget(one: LimitStanding, now_s: float) -> dict[str, Any]:
    ends_at = one.ends_at
    return {
        **_limit(one),
        "budget_id": one.limit_id,
        "budget_name": one.settings.name,
        "limit_cents": cents(one.amount),
        "current_usage_cents": cents(one.used),
        "remaining_cents": cents(max(0, one.amount - one.used - one.reserved)),
        "usage_percentage": _percentage(one),
        "is_exceeded": _is_exceeded(one),
        "is_warning": bool(one.passed),
        "thresholds": one.settings.thresholds,
        "period_type": one.settings.window,
        "period_start": one.begins_at,
        "period_end": ends_at,
        "days_until_reset": None if ends_at is None else max(0.0, ends_at - now_s) / DAY_S,
        "daily_burn_micros": one.daily_burn,
        "projected_micros": one.projected,
        "projected_percentage": None
        if one.projected is None or not one.amount
        else round(100 * one.projected / one.amount, 2),
        "days_left": one.days_left,
    }


def _warning(one: LimitStanding) -> dict[str, Any]:
    is_exceeded = _is_exceeded(one)
    percentage = _percentage(one)
    what = "is spent" if is_exceeded else f"is spent to {percentage} %"
    return {
        "type": "budget_exceeded" if is_exceeded else "budget_warning",
        "budget_id": one.limit_id,
        "budget_name": one.settings.name,
        "message": f"The budget '{one.settings.name}' {what}.",
        "current_usage_cents": cents(one.used),
        "limit_cents": cents(one.amount),
        "usage_percentage": percentage,
    }


def _percentage(one: LimitStanding) -> float:
    return round(100 * one.used / one.amount, 2) if one.amount else 100.0


def _is_exceeded(one: LimitStanding) -> bool:
    return one.used >= one.amount
