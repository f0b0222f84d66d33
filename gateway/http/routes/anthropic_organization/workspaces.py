"""Anthropic's organization API: workspaces, keys and users, as its own client reads them."""

from datetime import UTC, datetime
from typing import Any, Final, Literal

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.query import check_query, query_flag, query_text
from gateway.http.routes.administration.keys import (
    actor_of,
    admin_json,
    administer_keys,
    body_of,
)
from gateway.http.routes.administration.resources import administer_resources
from gateway.http.routes.organization.parts import (
    change,
    delete,
    find,
    find_keys,
    limit_of_page,
    make,
    one,
    owner_of,
    owners_of,
)
from gateway.http.schemas.administration.organization import (
    AnthropicRoleRequest,
    WorkspaceKeyRequest,
    WorkspaceRequest,
)
from gateway.http.schemas.administration.settings import LAST_SECOND
from gateway.http.schemas.base.body import body_schema
from gateway.workers.auth import AdminQuestion
from protocol.wire.messages import (
    KeyDetails,
    KeySettings,
    KeyStatus,
    Resource,
    TeamSettings,
    UserSettings,
)

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

BASE: Final = "/v1/organizations"
_WORKSPACES, WORKSPACE = f"{BASE}/workspaces", f"{BASE}/workspaces/{{workspace_id}}"
_KEYS, _KEY = f"{BASE}/api_keys", f"{BASE}/api_keys/{{key_id}}"
_USERS, _USER = f"{BASE}/users", f"{BASE}/users/{{user_id}}"
ORGANIZATION_ID: Final = "organization"
"""There is one; it is the server."""

_OF_THEIR_CLOUD: Final[dict[str, Any]] = {
    "data_residency": {
        "allowed_inference_geos": "unrestricted",
        "default_inference_geo": "global",
        "workspace_geo": "us",
    },
    "display_color": "#808080",
    "external_key_id": None,
}
"""What their clients' types require of a workspace; it says nothing of this server."""
_STATUS_THERE: Final[dict[KeyStatus, str]] = {
    "active": "active",
    "suspended": "inactive",
    "expired": "expired",
    "revoked": "archived",
}
_STATUS_HERE: Final = {there: here for here, there in _STATUS_THERE.items()}
_ACTIONS: Final[dict[str, Literal["suspend", "reactivate", "revoke"]]] = {
    "active": "reactivate",
    "inactive": "suspend",
    "archived": "revoke",
}
_LOOKED_THROUGH: Final = 1000
"""Keys at a time, where few of them may be inactive."""


@router.get(f"{BASE}/me")
async def get_organization(request: Request) -> Response:
    """Whose keys these are: there is one organization."""
    check_query(request)
    return admin_json({"type": "organization", "id": ORGANIZATION_ID, "name": "Penstock"})


@router.post(_WORKSPACES, openapi_extra=body_schema(WorkspaceRequest))
async def create_workspace(request: Request) -> Response:
    """Make a workspace, which is a team here."""
    name = (await body_of(request, WorkspaceRequest)).name
    return admin_json(_workspace(await make(request, "team", TeamSettings(name=name))))


@router.get(_WORKSPACES)
async def list_workspaces(request: Request) -> Response:
    """A page of workspaces; archived ones only with `include_archived`."""
    check_query(request, "after_id", "limit", "include_archived")
    is_all = query_flag(request, "include_archived")
    found = await find(
        request,
        "team",
        limit=limit_of_page(request),
        after_id=query_text(request, "after_id"),
        status="" if is_all else "active",
    )
    return admin_json(page_of(list(map(_workspace, found.resources)), has_more=found.has_more))


@router.get(WORKSPACE)
async def get_workspace(request: Request, workspace_id: str) -> Response:
    """One workspace."""
    return admin_json(_workspace(await one(request, "team", workspace_id)))


@router.post(WORKSPACE, openapi_extra=body_schema(WorkspaceRequest))
async def change_workspace(request: Request, workspace_id: str) -> Response:
    """Rename a workspace."""
    settings = TeamSettings(name=(await body_of(request, WorkspaceRequest)).name)
    return admin_json(_workspace(await change(request, "team", workspace_id, ("name",), settings)))


@router.post(f"{WORKSPACE}/archive")
async def archive_workspace(request: Request, workspace_id: str) -> Response:
    """Let the keys of a workspace open nothing any more; its team is suspended."""
    question = bridge.change_resource(
        request.state.request_id, actor_of(request), "team", workspace_id, "suspend"
    )
    return admin_json(_workspace((await administer_resources(request, question))[0]))


@router.get(_KEYS)
async def list_keys(request: Request) -> Response:
    """A page of keys, newest first."""
    check_query(request, "after_id", "limit", "status", "workspace_id")
    status = query_text(request, "status", one_of=tuple(_STATUS_HERE))
    limit, after = limit_of_page(request), query_text(request, "after_id")
    # Here a key is active that its user or team keeps closed.
    looks_at_all = status == "inactive"
    keys: list[KeyDetails] = []
    while len(keys) <= limit:
        found = await find_keys(
            request,
            status=_STATUS_HERE[status] if status and not looks_at_all else "",
            team_id=query_text(request, "workspace_id"),
            limit=_LOOKED_THROUGH if looks_at_all else limit + 1,
            after_key_id=after,
        )
        keys += [key for key in found.keys if not status or _status(key) == status]
        if not found.has_more:
            break
        after = found.keys[-1].key_id
    shown = keys[:limit]
    owners = await owners_of(request, shown)
    data = [_api_key(key, owner) for key, owner in zip(shown, owners, strict=True)]
    return admin_json(page_of(data, has_more=len(keys) > limit))


@router.get(_KEY)
async def get_key(request: Request, key_id: str) -> Response:
    """One key."""
    key = (await find_keys(request, key_id=key_id)).keys[0]
    return admin_json(_api_key(key, await owner_of(request, key)))


@router.post(_KEY, openapi_extra=body_schema(WorkspaceKeyRequest))
async def change_key(request: Request, key_id: str) -> Response:
    """Rename a key, suspend it (`inactive`), let it work again, or end it (`archived`)."""
    body = await body_of(request, WorkspaceKeyRequest)
    request_id, actor = request.state.request_id, actor_of(request)
    question: AdminQuestion
    if body.name is not None:
        action = _ACTIONS[body.status] if body.status else ""
        settings = KeySettings(name=body.name)
        question = bridge.update_key(request_id, actor, key_id, ("name",), settings, action)
    elif body.status is not None:
        question = bridge.change_key_status(request_id, actor, key_id, _ACTIONS[body.status])
    else:
        raise InvalidRequestError("The body names nothing to change.")
    key = (await administer_keys(request, question)).keys[0]
    return admin_json(_api_key(key, await owner_of(request, key)))


@router.get(_USERS)
async def list_users(request: Request) -> Response:
    """A page of users, newest first."""
    check_query(request, "after_id", "limit")
    found = await find(
        request, "user", limit=limit_of_page(request), after_id=query_text(request, "after_id")
    )
    return admin_json(page_of(list(map(_user, found.resources)), has_more=found.has_more))


@router.get(_USER)
async def get_user(request: Request, user_id: str) -> Response:
    """One user."""
    return admin_json(_user(await one(request, "user", user_id)))


@router.post(_USER, openapi_extra=body_schema(AnthropicRoleRequest))
async def change_user(request: Request, user_id: str) -> Response:
    """Give a user the role `user`: administrators are made by this server's own routes only."""
    await body_of(request, AnthropicRoleRequest)
    settings = UserSettings(name="", role="user")
    return admin_json(_user(await change(request, "user", user_id, ("role",), settings)))


@router.delete(_USER)
async def delete_user(request: Request, user_id: str) -> Response:
    """Forget a user; its keys are revoked."""
    await delete(request, "user", user_id)
    return admin_json({"type": "user_deleted", "id": user_id})


def _workspace(team: Resource) -> dict[str, Any]:
    settings = team.settings
    assert isinstance(settings, TeamSettings)
    return {
        "type": "workspace",
        "id": team.resource_id,
        "name": settings.name,
        "created_at": time_text(team.created_at),
        "archived_at": time_text(team.suspended_at),
        "tags": {},
        **_OF_THEIR_CLOUD,
        "compartment_id": team.resource_id,
    }


def _status(key: KeyDetails) -> str:
    """`inactive` also where its user or team keeps it from opening anything."""
    is_closed = key.status == "active" and key.closed_by
    return _STATUS_THERE["suspended" if is_closed else key.status]


def _api_key(key: KeyDetails, owner: Resource | None) -> dict[str, Any]:
    settings = key.settings
    in_team = {"type": "workspace", "workspace_id": settings.team_id}
    return {
        "type": "api_key",
        "id": key.key_id,
        "name": settings.name,
        "partial_key_hint": key.hint,
        "status": _status(key),
        "created_at": time_text(key.created_at),
        "created_by": {"type": "user", "id": key.created_by} if key.created_by else None,
        "expires_at": time_text(settings.expires_at),
        "principal": _principal(owner),
        "scope": in_team if settings.team_id else {"type": "organization"},
    }


def _principal(owner: Resource | None) -> dict[str, str] | None:
    settings = None if owner is None else owner.settings
    if owner is None or not isinstance(settings, UserSettings):
        return None
    if settings.kind == "service_account":
        return {"type": "service_account_actor", "service_account_id": owner.resource_id}
    return {"type": "user_actor", "user_id": owner.resource_id}


def _user(user: Resource) -> dict[str, Any]:
    settings = user.settings
    assert isinstance(settings, UserSettings)
    return {
        "type": "user",
        "id": user.resource_id,
        "name": settings.name,
        "email": settings.email,
        "role": "admin" if settings.role == "admin" else "user",
        "added_at": time_text(user.created_at),
    }


def page_of(
    records: list[dict[str, Any]], *, has_more: bool, id_field: str = "id"
) -> dict[str, Any]:
    """A page of records, which are continued after the one whose id is the last."""
    return {
        "data": records,
        "first_id": records[0][id_field] if records else None,
        "last_id": records[-1][id_field] if records else None,
        "has_more": has_more,
    }


def time_text(at_s: int | None) -> str | None:
    """Unix seconds as RFC 3339; what no calendar has, as an old key may, is its last moment."""
    if at_s is None:
        return None
    at_s = min(at_s, LAST_SECOND)
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
