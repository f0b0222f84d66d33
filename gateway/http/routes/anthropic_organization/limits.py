"""Anthropic's organization API: rate limits of the organization and of workspaces, spend limits."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import check_query, query_flag, query_number, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json, body_of
from gateway.http.routes.anthropic_organization.workspaces import BASE, WORKSPACE
from gateway.http.routes.organization.limits import Rate, rate_resources, set_rate_limits
from gateway.http.routes.organization.parts import find, limit_of_page, not_found, one
from gateway.http.schemas.administration.organization import WorkspaceRateLimitRequest
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import LimitSettings, LimitStanding, Resource, Standing, UserSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_RATES: Final = f"{WORKSPACE}/rate_limits"
_MAX_PAGE: Final = 1000
_MAX_USERS: Final = 100
_GROUPS: Final = ("batch", "files", "model_group", "skills", "token_count", "web_search")
"""Kinds of entries that there are with Anthropic; here limits are of models."""
_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "requests_per_minute": ("requests", "minute"),
    "input_tokens_per_minute": ("prompt_tokens", "minute"),
    "output_tokens_per_minute": ("completion_tokens", "minute"),
    "tokens_per_minute": ("tokens", "minute"),
    "tokens_per_day": ("tokens", "day"),
}
_PERIODS: Final = {
    "daily": "calendar_day",
    "weekly": "calendar_week",
    "monthly": "calendar_month",
}
_GLOB: Final = frozenset("*?[")


@router.get(f"{BASE}/rate_limits")
async def list_organization_rate_limits(request: Request) -> Response:
    """What everybody together may ask of each model, by the hard limits of the deployment."""
    check_query(request, "group_type", "limit", "model", "page")
    limits = await _of_house(request)
    model = parts_of(request).names.served(query_text(request, "model"))
    models = _models(request, limits)
    if model and model not in models:
        raise not_found("model", model)
    entries = [_entry(name, limits) for name in ([model] if model else models)]
    return _page(request, entries, "id")


@router.get(_RATES)
async def list_workspace_rate_limits(request: Request, workspace_id: str) -> Response:
    """What a workspace may ask of each model; with `include_inherited` also by the deployment."""
    check_query(request, "group_type", "include_inherited", "limit", "page")
    own = [settings for _, settings in await rate_resources(request, workspace_id)]
    of_house = await _of_house(request)
    inherits = query_flag(request, "include_inherited")
    entries = [
        _workspace_entry(workspace_id, model, own, of_house, inherits=inherits)
        for model in _models(request, [*own, *of_house])
    ]
    return _page(request, [entry for entry in entries if entry["limits"]], "rate_limit_id")


@router.post(
    f"{_RATES}/{{rate_limit_id:path}}", openapi_extra=body_schema(WorkspaceRateLimitRequest)
)
async def change_workspace_rate_limit(
    request: Request, workspace_id: str, rate_limit_id: str
) -> Response:
    """Set limits of a workspace for one model, or take them away with null."""
    body = await body_of(request, WorkspaceRateLimitRequest)
    if len({wanted.type for wanted in body.limits}) < len(body.limits):
        raise InvalidRequestError("`limits` takes each type once.", param="limits")
    model = parts_of(request).names.served(shapes.model_of_rate_limit(rate_limit_id))
    wanted = [Rate(one.type, *_TYPES[one.type], one.value) for one in body.limits]
    await set_rate_limits(request, workspace_id, model, wanted)
    own = [settings for _, settings in await rate_resources(request, workspace_id)]
    of_house = await _of_house(request)
    return admin_json(_workspace_entry(workspace_id, model, own, of_house, inherits=False))


@router.get(f"{BASE}/spend_limits/effective")
async def list_effective_spend_limits(request: Request) -> Response:
    """The hard budgets a day, week or month of users, and what they spent of them so far."""
    check_query(request, "limit", "page", "period[]", "user_ids[]")
    periods = request.query_params.getlist("period[]") or list(_PERIODS)
    for period in periods:
        if period not in _PERIODS:
            raise InvalidRequestError(f"`period` takes {', '.join(_PERIODS)}.", param="period")
    wanted = list(dict.fromkeys(request.query_params.getlist("user_ids[]")))
    if len(wanted) > _MAX_USERS:
        raise InvalidRequestError(f"`user_ids` takes {_MAX_USERS} at most.", param="user_ids")
    next_page = None
    if wanted:
        users: Sequence[Resource] = [await one(request, "user", user_id) for user_id in wanted]
    else:
        found = await find(
            request, "user", limit=limit_of_page(request), after_id=query_text(request, "page")
        )
        users = found.resources
        next_page = users[-1].resource_id if found.has_more else None
    rows: list[dict[str, Any]] = []
    for user in users:
        rows += await _spend_of(request, user, periods)
    return admin_json({"data": rows, "next_page": next_page})


async def _spend_of(
    request: Request, user: Resource, periods: Iterable[str]
) -> list[dict[str, Any]]:
    question = bridge.read_standing(
        request.state.request_id, actor_of(request), user_id=user.resource_id
    )
    standing = await parts_of(request).auth.administer(question, Standing)
    rows = []
    for period in periods:
        budgets = [one for one in standing.limits if _is_budget(one, _PERIODS[period])]
        if budgets:
            rows.append(_spend(user, period, min(budgets, key=lambda one: one.amount)))
    return rows


def _is_budget(standing: LimitStanding, window: str) -> bool:
    """Whether it bounds everything that a user spends in such a window."""
    settings = standing.settings
    is_of_all = settings.models is None and settings.endpoints is None
    is_money = settings.measure == "money" and settings.is_hard
    return is_money and is_of_all and settings.window == window


def _spend(user: Resource, period: str, budget: LimitStanding) -> dict[str, Any]:
    settings = user.settings
    assert isinstance(settings, UserSettings)
    scope = {"type": "user", "user_id": user.resource_id}
    actor = {
        "type": "user_actor",
        "user_id": user.resource_id,
        "name": settings.name,
        "email_address": settings.email or None,
        "deleted": False,
    }
    return {
        "actor": actor,
        "amount": str(budget.amount // shapes.MICROS_PER_CENT),
        "currency": "USD",
        "period": period,
        "period_to_date_spend": shapes.cents_text(budget.used),
        "scope": scope,
        "source": scope,
        "spend_limit_id": budget.limit_id,
    }


async def _of_house(request: Request) -> list[LimitSettings]:
    found = await find(request, "limit", holder="house", limit=1000)
    return [one.settings for one in found.resources if isinstance(one.settings, LimitSettings)]


def _models(request: Request, limits: Iterable[LimitSettings]) -> list[str]:
    """What is served, and what limits name, but for globs."""
    named = {model for limit in limits for model in limit.models or () if _GLOB.isdisjoint(model)}
    return sorted(named | set(parts_of(request).directory.models()))


def _values(model: str, limits: Iterable[LimitSettings]) -> dict[str, int]:
    """The tightest amount of each type that holds for a model."""
    values: dict[str, int] = {}
    for limit in limits:
        fits = limit.models is None or any(fnmatchcase(model, glob) for glob in limit.models)
        if not (fits and limit.is_hard and limit.endpoints is None):
            continue
        for name, kind in _TYPES.items():
            if kind == (limit.measure, limit.window):
                values[name] = min(limit.amount, values.get(name, limit.amount))
    return values


def _group(model: str) -> dict[str, Any]:
    return {"id": f"rlg-{model}", "type": "model_group", "display_name": model}


def _entry(model: str, limits: Iterable[LimitSettings]) -> dict[str, Any]:
    return {
        "type": "rate_limit",
        "id": f"{shapes.RATE_LIMIT_PREFIX}{model}",
        "group": _group(model),
        "models": [model],
        "limits": [
            {"type": name, "value": value} for name, value in _values(model, limits).items()
        ],
    }


def _workspace_entry(
    workspace_id: str,
    model: str,
    own: Iterable[LimitSettings],
    of_house: Iterable[LimitSettings],
    *,
    inherits: bool,
) -> dict[str, Any]:
    mine, theirs = _values(model, own), _values(model, of_house)
    values = [(name, value, "workspace") for name, value in mine.items()]
    if inherits:
        values += [
            (name, value, "organization") for name, value in theirs.items() if name not in mine
        ]
    return {
        "type": "workspace_rate_limit",
        "workspace_id": workspace_id,
        "rate_limit_id": f"{shapes.RATE_LIMIT_PREFIX}{model}",
        "group": _group(model),
        "models": [model],
        "limits": [
            {
                "type": name,
                "value": value,
                "org_limit": theirs.get(name),
                "source": {"type": source},
            }
            for name, value, source in values
        ],
    }


def _page(request: Request, entries: list[dict[str, Any]], id_field: str) -> Response:
    """Of entries in the order of their ids, all unless told; the next page is after an id."""
    limit, after = query_number(request, "limit"), query_text(request, "page")
    if limit is not None and not 1 <= limit <= _MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {_MAX_PAGE}.", param="limit")
    if query_text(request, "group_type", one_of=_GROUPS) not in ("", "model_group"):
        entries = []
    rest = [entry for entry in entries if entry[id_field] > after]
    data = rest if limit is None else rest[:limit]
    next_page = data[-1][id_field] if len(data) < len(rest) else None
    return admin_json({"data": data, "next_page": next_page})
