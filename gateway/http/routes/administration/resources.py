"""Users, teams, limits, budgets and prices, as administrators make, change and end them."""

import base64
import secrets
from collections.abc import Awaitable, Callable
from inspect import Parameter, Signature
from typing import Any, Final, Literal, NamedTuple, get_args

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.query import check_query, page_size, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json, body_of
from gateway.http.schemas.administration.resources import (
    ChangeLimitRequest,
    ChangePriceRequest,
    ChangeTeamRequest,
    ChangeUserRequest,
    ChangeWebhookRequest,
    CreateBudgetRequest,
    CreateLimitRequest,
    CreatePriceRequest,
    CreateTeamRequest,
    CreateUserRequest,
    CreateWebhookRequest,
    RaiseBudgetRequest,
    SetMemberRequest,
)
from gateway.http.schemas.administration.settings import SettingsModel
from gateway.http.schemas.base.body import body_schema
from gateway.workers.auth import AdminQuestion
from protocol.wire.messages import (
    LimitHolder,
    LimitSettings,
    MemberRole,
    PriceSettings,
    Resource,
    ResourceAction,
    ResourceKind,
    ResourceSettings,
    ResourcesFound,
    TeamSettings,
    UserSettings,
    WebhookSettings,
    WebhookState,
)

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

_SECRET_BYTES: Final = 32
_STATUSES: Final = ("active", "suspended")

Handler = Callable[[Request, str], Awaitable[Response]]


class ResourceRoutes(NamedTuple):
    """What the routes of one kind of resource are made of.

    Attributes:
        path: Of the list.
        create: The body that makes one.
        change: The body that changes one.
        settings: What bodies become, with values for fields that a change needn't say.
        has_status: Whether it can be suspended.
    """

    kind: ResourceKind
    path: str
    create: type[SettingsModel]
    change: type[SettingsModel]
    settings: ResourceSettings
    has_status: bool = False

    @property
    def one(self) -> str:
        """The template of the routes of one of them."""
        return f"{self.path}/{{{self.kind}_id}}"

    def made_of(self, values: dict[str, Any]) -> ResourceSettings:
        """The settings with these values, and defaults."""
        if self.kind == "budget":
            values = {**values, "measure": "money"}
        kind = type(self.settings)
        needed = {name: getattr(self.settings, name) for name in kind.__struct_fields__}
        return kind(**{**needed, **values})


_SOME_LIMIT: Final = LimitSettings(
    name="", holder="house", measure="tokens", amount=0, window="total"
)
RESOURCES: Final = (
    ResourceRoutes(
        "user",
        "/v1/admin/users",
        CreateUserRequest,
        ChangeUserRequest,
        UserSettings(name=""),
        has_status=True,
    ),
    ResourceRoutes(
        "team",
        "/v1/admin/teams",
        CreateTeamRequest,
        ChangeTeamRequest,
        TeamSettings(name=""),
        has_status=True,
    ),
    ResourceRoutes(
        "limit", "/v1/admin/limits", CreateLimitRequest, ChangeLimitRequest, _SOME_LIMIT
    ),
    ResourceRoutes(
        "budget", "/v1/admin/budgets", CreateBudgetRequest, ChangeLimitRequest, _SOME_LIMIT
    ),
    ResourceRoutes(
        "webhook",
        "/v1/admin/webhooks",
        CreateWebhookRequest,
        ChangeWebhookRequest,
        WebhookSettings(name="", url="", events=()),
        has_status=True,
    ),
    ResourceRoutes(
        "price",
        "/v1/admin/prices",
        CreatePriceRequest,
        ChangePriceRequest,
        PriceSettings(models="", prompt=0, completion=0),
    ),
)


def _add_routes(of: ResourceRoutes) -> None:
    """The routes that every kind of resource has."""
    kind, id_name = of.kind, f"{of.kind}_id"

    async def create(request: Request) -> Response:
        _, values = (await body_of(request, of.create)).given()
        values = _of_served_models(request, values)
        if kind == "webhook":
            values.setdefault("secret", new_webhook_secret())
        question = bridge.make_resource(
            request.state.request_id, actor_of(request), kind, of.made_of(values)
        )
        return admin_json(
            resource_record(kind, await administer_resources(request, question)), status=201
        )

    async def list_page(request: Request) -> Response:
        check_query(request, *_FILTERS_OF.get(kind, ()), "after", "limit")
        question = bridge.find_resources(
            request.state.request_id,
            actor_of(request),
            kind=kind,
            after_id=query_text(request, "after"),
            limit=page_size(request),
            **_filters(request, kind),
        )
        found = await parts_of(request).auth.administer(question, ResourcesFound)
        data = [resource_record(kind, (resource,)) for resource in found.resources]
        for record in data:
            record.pop("members", None)  # told of one team alone: there may be thousands
        return admin_json({"object": "list", "data": data, "has_more": found.has_more})

    async def get(request: Request, resource_id: str) -> Response:
        question = bridge.find_resources(
            request.state.request_id, actor_of(request), kind=kind, resource_id=resource_id
        )
        found = await parts_of(request).auth.administer(question, ResourcesFound)
        return admin_json(resource_record(kind, found.resources))

    async def change(request: Request, resource_id: str) -> Response:
        fields, values = (await body_of(request, of.change)).given()
        if not fields:
            raise InvalidRequestError("The body names nothing to change.")
        values = _of_served_models(request, values)
        return await _update(request, of, resource_id, fields, values)

    async def delete(request: Request, resource_id: str) -> Response:
        await _act(request, kind, resource_id, "delete")
        return admin_json({"object": f"{kind}.deleted", "id": resource_id, "deleted": True})

    def act(action: ResourceAction) -> Handler:
        async def change_status(request: Request, resource_id: str) -> Response:
            return admin_json(resource_record(kind, await _act(request, kind, resource_id, action)))

        return change_status

    def add(
        method: str,
        path: str,
        handler: Callable[..., Awaitable[Response]],
        name: str,
        text: str,
        body: type[SettingsModel] | None = None,
    ) -> None:
        router.add_api_route(
            path,
            handler,
            methods=[method],
            name=name,
            summary=name.replace("_", " ").capitalize(),
            description=text,
            openapi_extra=None if body is None else body_schema(body),
        )

    def on_one(handler: Handler) -> Callable[..., Awaitable[Response]]:
        return _with_ids(handler, id_name)

    add("POST", of.path, create, f"create_{kind}", f"Make a {kind}.", of.create)
    add("GET", of.path, list_page, f"list_{kind}s", f"A page of {kind}s, newest first.")
    add("GET", of.one, on_one(get), f"get_{kind}", f"One {kind}.")
    add("PATCH", of.one, on_one(change), f"change_{kind}", _CHANGES[kind], of.change)
    add("DELETE", of.one, on_one(delete), f"delete_{kind}", _ENDS[kind])
    if of.has_status:
        is_webhook = kind == "webhook"
        suspends = (
            "Send a webhook nothing for the time being; what happens meanwhile is sent later."
            if is_webhook
            else f"End the keys of a {kind} for the time being, at once."
        )
        add("POST", f"{of.one}/suspend", on_one(act("suspend")), f"suspend_{kind}", suspends)
        lets = (
            "Send a suspended webhook what it missed, and what comes."
            if is_webhook
            else f"Let the keys of a suspended {kind} work again."
        )
        add("POST", f"{of.one}/reactivate", on_one(act("reactivate")), f"reactivate_{kind}", lets)


_CHANGES: Final[dict[ResourceKind, str]] = {
    "user": "Change what is sent; null clears, and what isn't sent stays.",
    "team": "Change what is sent; null clears, and what isn't sent stays.",
    "limit": "Change what is sent; whose it is and what it counts stays.",
    "budget": "Change what is sent; whose it is stays.",
    "webhook": "Change what is sent; another secret counts from the next attempt on.",
    "price": "Set a new version, from now or `valid_from` on; those before stay as they were.",
}
_ENDS: Final[dict[ResourceKind, str]] = {
    "user": "Forget a user; its keys are revoked, its limits and budgets go with it.",
    "team": "Forget a team; its keys are revoked, its limits and budgets go with it.",
    "limit": "Take a limit away.",
    "budget": "Take a budget away.",
    "webhook": "Take a webhook away; what it was not sent yet it never gets.",
    "price": "End a price from now on; what was paid by it stays.",
}


def _with_ids(handler: Any, *names: str) -> Callable[..., Awaitable[Response]]:
    """A handler that takes the ids of its path by their names there, which OpenAPI shows."""

    async def named(request: Request, **ids: str) -> Response:
        answer: Response = await handler(request, *(ids[name] for name in names))
        return answer

    kind = Parameter.POSITIONAL_OR_KEYWORD
    named.__signature__ = Signature(  # type: ignore[attr-defined]  # what FastAPI reads
        [
            Parameter("request", kind, annotation=Request),
            *(Parameter(name, kind, annotation=str) for name in names),
        ]
    )
    return named


for _resource in RESOURCES:
    _add_routes(_resource)

_FILTERS_OF: Final[dict[ResourceKind, tuple[str, ...]]] = {
    "user": ("status", "tag", "team_id"),
    "team": ("status", "tag", "user_id"),
    "limit": ("holder", "holder_id"),
    "budget": ("holder", "holder_id"),
    "webhook": ("status",),
}
"""What else may stand in the query of a list."""

_BUDGET = next(one for one in RESOURCES if one.kind == "budget")
_MEMBER: Final = "/v1/admin/teams/{team_id}/members/{user_id}"


@router.post(f"{_BUDGET.one}/raise", openapi_extra=body_schema(RaiseBudgetRequest))
async def raise_budget(request: Request, budget_id: str) -> Response:
    """Give a budget more for a while; 0 takes a raise back."""
    body = await body_of(request, RaiseBudgetRequest)
    values = {"raised_by": body.by} | ({} if body.until is None else {"raised_until": body.until})
    return await _update(request, _BUDGET, budget_id, ("raised_by", "raised_until"), values)


@router.put(_MEMBER, openapi_extra=body_schema(SetMemberRequest, is_required=False))
async def set_member(request: Request, team_id: str, user_id: str) -> Response:
    """Make a user a member of a team, or give it another role there."""
    body = await body_of(request, SetMemberRequest, is_required=False)
    return await _set_member(request, team_id, user_id, body.role)


@router.delete(_MEMBER)
async def remove_member(request: Request, team_id: str, user_id: str) -> Response:
    """End a membership; the user's keys for the team open nothing from now on."""
    return await _set_member(request, team_id, user_id, "")


def resource_record(kind: ResourceKind, resources: tuple[Resource, ...]) -> dict[str, Any]:
    """A resource as administrators see it; several are the versions of one price, newest first."""
    newest = resources[0]
    settings = newest.settings
    fields: dict[str, Any] = {
        name: getattr(settings, name) for name in type(settings).__struct_fields__
    }
    record = {
        "object": kind,
        "id": newest.resource_id,
        **fields,
        "created_at": newest.created_at,
        "created_by": newest.created_by,
    }
    if isinstance(settings, WebhookSettings):
        if not settings.secret:
            del record["secret"]
        state = newest.webhook or WebhookState()
        record |= {name: getattr(state, name) for name in WebhookState.__struct_fields__}
    if isinstance(settings, UserSettings | TeamSettings | WebhookSettings):
        record["status"] = "active" if newest.suspended_at is None else "suspended"
        record["suspended_at"] = newest.suspended_at
    if isinstance(settings, UserSettings):
        record["team_ids"] = newest.team_ids
    elif isinstance(settings, TeamSettings):
        record["members"] = [
            {name: getattr(member, name) for name in ("user_id", "role", "added_at")}
            for member in newest.members
        ]
    elif isinstance(settings, PriceSettings):
        record |= {"version": newest.version, "is_ended": newest.is_ended}
        if len(resources) > 1:
            record["earlier"] = [resource_record(kind, (one,)) for one in resources[1:]]
    return record


def new_webhook_secret() -> str:
    """A secret that signs what a webhook is sent; shown once."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"


async def _update(
    request: Request,
    of: ResourceRoutes,
    resource_id: str,
    fields: tuple[str, ...],
    values: dict[str, Any],
) -> Response:
    question = bridge.update_resource(
        request.state.request_id,
        actor_of(request),
        of.kind,
        resource_id,
        fields,
        of.made_of(values),
    )
    return admin_json(resource_record(of.kind, await administer_resources(request, question)))


def _of_served_models(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    """The same values with the models that aliases stand for: nothing else is ever decided by."""
    names = parts_of(request).names
    served = dict(values)
    for field in ("models", "allowed_models"):
        value = values.get(field)
        if isinstance(value, str):
            served[field] = names.served(value)
        elif value is not None:
            served[field] = names.served_globs(value)
    return served


async def _act(
    request: Request, kind: ResourceKind, resource_id: str, action: ResourceAction
) -> tuple[Resource, ...]:
    question = bridge.change_resource(
        request.state.request_id, actor_of(request), kind, resource_id, action
    )
    return await administer_resources(request, question)


async def _set_member(
    request: Request, team_id: str, user_id: str, role: MemberRole | Literal[""]
) -> Response:
    question = bridge.set_member(
        request.state.request_id, actor_of(request), team_id, user_id, role
    )
    return admin_json(resource_record("team", await administer_resources(request, question)))


async def administer_resources(request: Request, question: AdminQuestion) -> tuple[Resource, ...]:
    """A change; what this gateway knew of callers counts no more, whatever came of it."""
    parts = parts_of(request)
    try:
        return (await parts.auth.administer(question, ResourcesFound)).resources
    finally:
        parts.identities.clear()


def _filters(request: Request, kind: ResourceKind) -> dict[str, str]:
    """What is asked for in the query of a list."""
    if kind in ("user", "team"):
        of_whom = "team_id" if kind == "user" else "user_id"
        return {
            "status": query_text(request, "status", one_of=_STATUSES),
            "tag": query_text(request, "tag"),
            "member": query_text(request, of_whom),
        }
    if kind == "price":
        return {}
    if kind == "webhook":
        return {"status": query_text(request, "status", one_of=_STATUSES)}
    return {
        "holder": query_text(request, "holder", one_of=get_args(LimitHolder)),
        "holder_id": query_text(request, "holder_id"),
    }
