"""OpenAI's organization API: rate limits and models of projects, spend limits and alerts."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import Signature, signature
from typing import Any, Final, NamedTuple, cast

from fastapi import APIRouter, Request, Response

from gateway.errors import InvalidRequestError, RemoteFailureError
from gateway.http.access.guard import GuardedRoute
from gateway.http.answers.answer_headers import ignored_headers
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import check_query, query_text
from gateway.http.routes.administration.keys import admin_json, body_of
from gateway.http.routes.organization.parts import (
    BASE,
    PROJECT,
    change,
    delete,
    find,
    limit_of_page,
    make,
    one,
    to_its_end,
)
from gateway.http.schemas.administration.organization import (
    ModelPermissionsRequest,
    RateLimitRequest,
    SpendAlertRequest,
    SpendLimitRequest,
)
from gateway.http.schemas.base.body import body_schema
from protocol.errors import ErrorCode
from protocol.wire.messages import LimitSettings, Resource, ResourceKind, TeamSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_RATES: Final = f"{PROJECT}/rate_limits"
_MODELS: Final = f"{PROJECT}/model_permissions"
LIMIT_NAME: Final = "spend_limit"
ALERT_NAME: Final = "spend_alert"
"""Names by which budgets that were made here are known again."""


@router.get(_RATES)
async def list_rate_limits(request: Request, project_id: str) -> Response:
    """What a project may ask of each model that is served or limited; null where nothing limits."""
    check_query(request, "limit", "after")
    limits = await _rates(request, project_id)
    named = {model for limit in limits for model in limit.models or ()}
    models = sorted(named | set(parts_of(request).directory.models()))
    after = query_text(request, "after").removeprefix(shapes.RATE_LIMIT_PREFIX)
    rest = [model for model in models if not after or model > after]
    limit = limit_of_page(request)
    data = [shapes.rate_limit(model, limits) for model in rest[:limit]]
    return admin_json(shapes.page(data, has_more=len(rest) > limit))


@router.post(f"{_RATES}/{{rate_limit_id:path}}", openapi_extra=body_schema(RateLimitRequest))
async def change_rate_limit(request: Request, project_id: str, rate_limit_id: str) -> Response:
    """Set limits of a project for one model; each is a limit of the team."""
    body = await body_of(request, RateLimitRequest)
    model = parts_of(request).names.served(shapes.model_of_rate_limit(rate_limit_id))
    wanted = []
    for field in sorted(body.model_fields_set):
        amount = getattr(body, field)
        if amount == shapes.NO_LIMIT:
            amount = None  # as it was told
        wanted.append(Rate(field, *shapes.RATE_FIELDS[field], amount))
    await set_rate_limits(request, project_id, model, wanted)
    return admin_json(shapes.rate_limit(model, await _rates(request, project_id)))


@router.get(_MODELS)
async def get_model_permissions(request: Request, project_id: str) -> Response:
    """The models that a project may use."""
    return admin_json(_permissions(await one(request, "team", project_id)))


@router.post(_MODELS, openapi_extra=body_schema(ModelPermissionsRequest))
async def change_model_permissions(request: Request, project_id: str) -> Response:
    """Say which models a project may use; patterns are globs, and an alias is its model."""
    body = await body_of(request, ModelPermissionsRequest)
    if body.mode == "deny_list" and body.model_ids:
        raise InvalidRequestError(
            "A project's models are listed, not excepted: use the mode allow_list.", param="mode"
        )
    served = parts_of(request).names.served
    allowed = tuple(map(served, body.model_ids)) if body.mode == "allow_list" else None
    return admin_json(_permissions(await _allow(request, project_id, allowed)))


@router.delete(_MODELS)
async def delete_model_permissions(request: Request, project_id: str) -> Response:
    """Let a project use every model."""
    await _allow(request, project_id, None)
    return admin_json(shapes.deleted("project.model_permissions"))


async def _allow(request: Request, project_id: str, allowed: tuple[str, ...] | None) -> Resource:
    settings = TeamSettings(name="", allowed_models=allowed)
    return await change(request, "team", project_id, ("allowed_models",), settings)


def _permissions(team: Resource) -> dict[str, Any]:
    settings = team.settings
    assert isinstance(settings, TeamSettings)
    allowed = settings.allowed_models
    return {
        "object": "project.model_permissions",
        "mode": "deny_list" if allowed is None else "allow_list",
        "model_ids": list(allowed or ()),
    }


class Rate(NamedTuple):
    """A limit that a team is to have for a model.

    Attributes:
        name: Of its kind, as the caller's API spells it.
        measure: Of what, as `LimitSettings` spell it.
        window: In what time, likewise.
        amount: None takes it away.
    """

    name: str
    measure: str
    window: str
    amount: int | None


async def set_rate_limits(
    request: Request, team_id: str, model: str, wanted: Sequence[Rate]
) -> None:
    """Set limits of a team for one model alone, or take them away: all of that, or nothing.

    Of several that are alike, as administrators may make elsewhere, one is left: the others would
    hold beside it. What may be refused, since a team has so many limits at most, comes first, and
    is taken back then. All of it is done even if the caller leaves.
    """
    known = await rate_resources(request, team_id)
    await to_its_end(_set_rate_limits(request, team_id, model, wanted, known))


async def _set_rate_limits(
    request: Request,
    team_id: str,
    model: str,
    wanted: Sequence[Rate],
    known: Sequence[tuple[Resource, LimitSettings]],
) -> None:
    made: list[str] = []
    try:
        for rate in wanted:
            if rate.amount is not None and not _alike(known, rate, model):
                settings = _limit_of(team_id, model, rate, rate.amount)
                made.append((await make(request, "limit", settings)).resource_id)
    except BaseException:
        await _delete_all(request, "limit", made)
        raise
    now = await rate_resources(request, team_id) if made else known
    for rate in wanted:
        same = _alike(known, rate, model)
        if rate.amount is None:
            await _delete_all(request, "limit", same)
            continue
        if same:
            settings = _limit_of(team_id, model, rate, rate.amount)
            await change(request, "limit", same[0], ("amount",), settings)
        # Of two that were made at once each of those who made them leaves the newest, and so the
        # same one.
        await _delete_all(request, "limit", (same or _alike(now, rate, model))[1:])


def _alike(known: Iterable[tuple[Resource, LimitSettings]], rate: Rate, model: str) -> list[str]:
    """The ids of the limits that say the same of a model, the newest first."""
    return [
        resource.resource_id
        for resource, limit in known
        if shapes.is_rate_limit(limit, rate.measure, rate.window, model)
    ]


def _limit_of(team_id: str, model: str, rate: Rate, amount: int) -> LimitSettings:
    return LimitSettings(
        name=f"{rate.name} of {model}"[:200],
        holder="team",
        holder_id=team_id,
        measure=rate.measure,  # type: ignore[arg-type]  # of a table
        amount=amount,
        window=rate.window,  # type: ignore[arg-type]
        models=(model,),
    )


async def _delete_all(request: Request, kind: ResourceKind, ids: Iterable[str]) -> None:
    """Delete what somebody else may delete at the same time."""
    for resource_id in ids:
        try:
            await delete(request, kind, resource_id)
        except RemoteFailureError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise


async def rate_resources(request: Request, project_id: str) -> list[tuple[Resource, LimitSettings]]:
    """The limits of a team, as resources and what they say."""
    await one(request, "team", project_id)
    found = await find(request, "limit", holder="team", holder_id=project_id, limit=1000)
    return [
        (resource, resource.settings)
        for resource in found.resources
        if isinstance(resource.settings, LimitSettings)
    ]


async def _rates(request: Request, project_id: str) -> Sequence[LimitSettings]:
    return [settings for _, settings in await rate_resources(request, project_id)]


# Money.


async def _budgets(request: Request, project_id: str, name: str, after: str = "") -> list[Resource]:
    """The budgets of a project, or without one of the deployment, that were made here.

    The newest first; after an id those that follow it.
    """
    if project_id:
        await one(request, "team", project_id)
    holder = "team" if project_id else "house"
    found = await find(
        request, "budget", holder=holder, holder_id=project_id, after_id=after, limit=1000
    )
    return [
        budget
        for budget in found.resources
        if isinstance(budget.settings, LimitSettings)
        and budget.settings.name == name
        and _is_of_a_month(budget.settings)
        and budget.settings.is_hard == (name == LIMIT_NAME)
    ]


def _is_of_a_month(budget: LimitSettings) -> bool:
    """Whether it is of everything in a month, as those made here; any budget may have the name."""
    is_of_all = budget.models is None and budget.endpoints is None
    return is_of_all and budget.window == "calendar_month"


def _settings(project_id: str, name: str, body: SpendLimitRequest) -> LimitSettings:
    is_hard = name == LIMIT_NAME
    return LimitSettings(
        name=name,
        holder="team" if project_id else "house",
        holder_id=project_id,
        measure="money",
        amount=body.threshold_amount * shapes.MICROS_PER_CENT,
        window="calendar_month",
        is_hard=is_hard,
        thresholds=() if is_hard else (100,),
    )


def _kind(project_id: str) -> str:
    return "project" if project_id else "organization"


async def get_spend_limit(request: Request, project_id: str = "") -> Response:
    """The hard budget of a month."""
    budget = (await _the_limits(request, project_id))[0]
    return admin_json(shapes.spend_limit(budget, _kind(project_id)))


async def set_spend_limit(request: Request, project_id: str = "") -> Response:
    """Set the hard budget of a month, in cents: beyond it requests are a 402."""
    body = await body_of(request, SpendLimitRequest)
    settings = _settings(project_id, LIMIT_NAME, body)
    known = await _budgets(request, project_id, LIMIT_NAME)
    if known:
        budget = await change(request, "budget", known[0].resource_id, ("amount",), settings)
    else:
        made = await make(request, "budget", settings)
        known = await _budgets(request, project_id, LIMIT_NAME) or [made]
        budget = known[0]
    # They would hold beside it; of two that were made at once both leave the newest.
    await _delete_all(request, "budget", [one.resource_id for one in known[1:]])
    return admin_json(shapes.spend_limit(budget, _kind(project_id)))


async def delete_spend_limit(request: Request, project_id: str = "") -> Response:
    """Take the hard budget of a month away."""
    for budget in await _the_limits(request, project_id):
        await delete(request, "budget", budget.resource_id)
    return admin_json(shapes.deleted(f"{_kind(project_id)}.spend_limit"))


async def _the_limits(request: Request, project_id: str) -> list[Resource]:
    """The hard budgets of a month, the tightest first; one where all were made here in turn."""
    known = await _budgets(request, project_id, LIMIT_NAME)
    if not known:
        raise RemoteFailureError("There is no spend limit.", code=ErrorCode.NOT_FOUND)
    return sorted(known, key=lambda one: cast(LimitSettings, one.settings).amount)


async def list_spend_alerts(request: Request, project_id: str = "") -> Response:
    """The amounts of a month that are put on record when they are passed."""
    check_query(request, "limit", "after", "order")
    if query_text(request, "order", one_of=("asc", "desc")) == "asc":
        raise InvalidRequestError("Alerts are listed newest first only.", param="order")
    after, limit = query_text(request, "after"), limit_of_page(request)
    alerts = await _budgets(request, project_id, ALERT_NAME, after)
    data = [shapes.spend_alert(alert, _kind(project_id)) for alert in alerts[:limit]]
    return admin_json(shapes.page(data, has_more=len(alerts) > limit))


async def create_spend_alert(request: Request, project_id: str = "") -> Response:
    """Have an amount of a month put on record when it is passed; webhooks tell of it."""
    body = await body_of(request, SpendAlertRequest)
    ignored = _ignored(request, body)
    if project_id:
        await one(request, "team", project_id)
    alert = await make(request, "budget", _settings(project_id, ALERT_NAME, body))
    return admin_json(shapes.spend_alert(alert, _kind(project_id)), more=ignored)


async def get_spend_alert(request: Request, alert_id: str, project_id: str = "") -> Response:
    """One alert."""
    alert = await _the_alert(request, project_id, alert_id)
    return admin_json(shapes.spend_alert(alert, _kind(project_id)))


async def change_spend_alert(request: Request, alert_id: str, project_id: str = "") -> Response:
    """Set another amount."""
    body = await body_of(request, SpendAlertRequest)
    ignored = _ignored(request, body)
    await _the_alert(request, project_id, alert_id)
    settings = _settings(project_id, ALERT_NAME, body)
    alert = await change(request, "budget", alert_id, ("amount",), settings)
    return admin_json(shapes.spend_alert(alert, _kind(project_id)), more=ignored)


async def delete_spend_alert(request: Request, alert_id: str, project_id: str = "") -> Response:
    """Take an alert away."""
    await _the_alert(request, project_id, alert_id)
    await delete(request, "budget", alert_id)
    return admin_json(shapes.deleted(f"{_kind(project_id)}.spend_alert", alert_id))


def _ignored(request: Request, body: SpendAlertRequest) -> dict[str, str]:
    """The header that tells of what has no effect, since no e-mail is sent."""
    has_prefix = bool(body.notification_channel.subject_prefix)
    return ignored_headers(
        ["notification_channel.subject_prefix"] if has_prefix else [],
        strict=parts_of(request).settings.strict_fields,
    )


async def _the_alert(request: Request, project_id: str, alert_id: str) -> Resource:
    for alert in await _budgets(request, project_id, ALERT_NAME):
        if alert.resource_id == alert_id:
            return alert
    raise RemoteFailureError(
        f"There is no spend alert '{alert_id[:100]}'.", code=ErrorCode.NOT_FOUND
    )


def _of_house(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """A handler without the project that its path doesn't name, for OpenAPI as well."""

    async def of_house(request: Request, **ids: str) -> Response:
        return await handler(request, **ids)

    kept = [one for one in signature(handler).parameters.values() if one.name != "project_id"]
    of_house.__signature__ = Signature(kept)  # type: ignore[attr-defined]  # what FastAPI reads
    of_house.__doc__ = handler.__doc__
    return of_house


def _add(base: str) -> None:
    """The routes of money, of the organization and of a project."""
    limit, alerts = f"{base}/spend_limit", f"{base}/spend_alerts"
    alert = f"{alerts}/{{alert_id}}"
    of_limit, of_alert = body_schema(SpendLimitRequest), body_schema(SpendAlertRequest)
    routes: tuple[tuple[str, str, Callable[..., Awaitable[Response]], Any], ...] = (
        (limit, "GET", get_spend_limit, None),
        (limit, "POST", set_spend_limit, of_limit),
        (limit, "DELETE", delete_spend_limit, None),
        (alerts, "GET", list_spend_alerts, None),
        (alerts, "POST", create_spend_alert, of_alert),
        (alert, "GET", get_spend_alert, None),
        (alert, "POST", change_spend_alert, of_alert),
        (alert, "DELETE", delete_spend_alert, None),
    )
    for path, method, handler, extra in routes:
        of_project = "project" if base == PROJECT else "organization"
        router.add_api_route(
            path,
            handler if base == PROJECT else _of_house(handler),
            methods=[method],
            name=f"{handler.__name__}_of_{of_project}",
            openapi_extra=extra,
        )


_add(BASE)
_add(PROJECT)
