"""OpenAI's organization API: projects, which are teams here, and keys."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.query import check_query, query_flag, query_text
from gateway.http.routes.administration.keys import (
    actor_of,
    admin_json,
    administer_keys,
    body_of,
)
from gateway.http.routes.administration.resources import administer_resources
from gateway.http.routes.organization.parts import (
    BASE,
    PROJECT,
    PROJECTS,
    change,
    expiry,
    find,
    find_keys,
    limit_of_page,
    make,
    make_key,
    not_found,
    one,
    owner_of,
    owners_of,
)
from gateway.http.schemas.administration.organization import (
    AdminKeyRequest,
    ChangeProjectKeyRequest,
    ProjectRequest,
)
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import KeyDetails, KeySettings, TeamSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_KEYS, _KEY = f"{PROJECT}/api_keys", f"{PROJECT}/api_keys/{{key_id}}"
_ADMIN_KEYS: Final = f"{BASE}/admin_api_keys"


# Projects.


@router.post(PROJECTS, openapi_extra=body_schema(ProjectRequest))
async def create_project(request: Request) -> Response:
    """Make a project, which is a team here."""
    name = (await body_of(request, ProjectRequest)).name
    return admin_json(shapes.project(await make(request, "team", TeamSettings(name=name))))


@router.get(PROJECTS)
async def list_projects(request: Request) -> Response:
    """A page of projects; archived ones only with `include_archived`."""
    check_query(request, "after", "limit", "include_archived")
    is_all = query_flag(request, "include_archived")
    found = await find(
        request,
        "team",
        limit=limit_of_page(request),
        after_id=query_text(request, "after"),
        status="" if is_all else "active",
    )
    data = [shapes.project(team) for team in found.resources]
    return admin_json(shapes.page(data, has_more=found.has_more))


@router.get(PROJECT)
async def get_project(request: Request, project_id: str) -> Response:
    """One project."""
    return admin_json(shapes.project(await one(request, "team", project_id)))


@router.post(PROJECT, openapi_extra=body_schema(ProjectRequest))
async def change_project(request: Request, project_id: str) -> Response:
    """Rename a project."""
    settings = TeamSettings(name=(await body_of(request, ProjectRequest)).name)
    return admin_json(
        shapes.project(await change(request, "team", project_id, ("name",), settings))
    )


@router.post(f"{PROJECT}/archive")
async def archive_project(request: Request, project_id: str) -> Response:
    """Let the keys of a project open nothing any more; its team is suspended."""
    question = bridge.change_resource(
        request.state.request_id, actor_of(request), "team", project_id, "suspend"
    )
    return admin_json(shapes.project((await administer_resources(request, question))[0]))


# Keys.


@router.post(_ADMIN_KEYS, openapi_extra=body_schema(AdminKeyRequest))
async def create_admin_key(request: Request) -> Response:
    """Make a key of role admin; `value` is shown this once."""
    body = await body_of(request, AdminKeyRequest)
    settings = KeySettings(
        name=body.name, role="admin", expires_at=expiry(request, body.expires_in_seconds)
    )
    key, secret = await make_key(request, settings)
    return admin_json(shapes.admin_key(key, secret))


@router.get(_ADMIN_KEYS)
async def list_admin_keys(request: Request) -> Response:
    """A page of keys of role admin, newest first, but for those that were revoked."""
    check_query(request, "after", "limit", "order")
    if query_text(request, "order", one_of=("asc", "desc")) == "asc":
        raise InvalidRequestError("Keys are listed newest first only.", param="order")
    limit, after = limit_of_page(request), query_text(request, "after")
    data: list[dict[str, Any]] = []
    while len(data) <= limit:
        found = await find_keys(request, role="admin", limit=limit + 1, after_key_id=after)
        # Their shape has no status by which one that was revoked would be known.
        data += [shapes.admin_key(key) for key in found.keys if key.status != "revoked"]
        if not found.has_more:
            break
        after = found.keys[-1].key_id
    return admin_json(shapes.page(data[:limit], has_more=len(data) > limit))


@router.get(f"{_ADMIN_KEYS}/{{key_id}}")
async def get_admin_key(request: Request, key_id: str) -> Response:
    """One key of role admin."""
    return admin_json(shapes.admin_key(await _admin_key(request, key_id)))


@router.delete(f"{_ADMIN_KEYS}/{{key_id}}")
async def delete_admin_key(request: Request, key_id: str) -> Response:
    """Forget a key of role admin."""
    await _admin_key(request, key_id)
    await _delete_key(request, key_id)
    return admin_json(shapes.deleted("organization.admin_api_key", key_id))


@router.get(_KEYS)
async def list_project_keys(request: Request, project_id: str) -> Response:
    """A page of a project's keys, newest first."""
    check_query(request, "after", "limit", "owner_project_access")
    access = query_text(request, "owner_project_access", one_of=("active", "inactive", "any"))
    if access == "inactive":
        raise InvalidRequestError(
            "Inactive keys aren't listed by themselves; ask for any.", param="owner_project_access"
        )
    team = await one(request, "team", project_id)
    limit, after = limit_of_page(request), query_text(request, "after")
    data: list[dict[str, Any]] = []
    while len(data) <= limit:
        found = await find_keys(
            request,
            team_id=project_id,
            status="active" if access == "active" else "",
            limit=limit + 1,
            after_key_id=after,
        )
        owners = await owners_of(request, found.keys)
        data += [
            shapes.project_key(key, owner, team)
            for key, owner in zip(found.keys, owners, strict=True)
            if access != "active" or shapes.has_access(key, owner, team)
        ]
        if not found.has_more:
            break
        after = found.keys[-1].key_id
    return admin_json(shapes.page(data[:limit], has_more=len(data) > limit))


@router.get(_KEY)
async def get_project_key(request: Request, project_id: str, key_id: str) -> Response:
    """One key of a project."""
    return await _told(request, await _project_key(request, project_id, key_id))


@router.post(_KEY, openapi_extra=body_schema(ChangeProjectKeyRequest))
async def change_project_key(request: Request, project_id: str, key_id: str) -> Response:
    """Narrow a key of a project, or let it end at another time."""
    body = await body_of(request, ChangeProjectKeyRequest)
    await _project_key(request, project_id, key_id)
    settings = KeySettings(
        name="",
        scopes=None if body.scopes is None else tuple(body.scopes),
        expires_at=expiry(request, body.expires_in_seconds),
    )
    renamed = {"scopes": "scopes", "expires_in_seconds": "expires_at"}
    fields = tuple(renamed[name] for name in sorted(body.model_fields_set))
    if not fields:
        raise InvalidRequestError("The body names nothing to change.")
    question = bridge.update_key(
        request.state.request_id, actor_of(request), key_id, fields, settings
    )
    return await _told(request, (await administer_keys(request, question)).keys[0])


@router.delete(_KEY)
async def delete_project_key(request: Request, project_id: str, key_id: str) -> Response:
    """Forget a key of a project."""
    await _project_key(request, project_id, key_id)
    await _delete_key(request, key_id)
    return admin_json(shapes.deleted("organization.project.api_key", key_id))


async def _told(request: Request, key: KeyDetails) -> Response:
    """A key of a project, as it is shown."""
    team = await one(request, "team", key.settings.team_id)
    return admin_json(shapes.project_key(key, await owner_of(request, key), team))


async def _delete_key(request: Request, key_id: str) -> None:
    question = bridge.change_key_status(
        request.state.request_id, actor_of(request), key_id, "delete"
    )
    await administer_keys(request, question)


async def _admin_key(request: Request, key_id: str) -> KeyDetails:
    key = (await find_keys(request, key_id=key_id)).keys[0]
    if key.settings.role != "admin":
        raise not_found("admin key", key_id)
    return key


async def _project_key(request: Request, project_id: str, key_id: str) -> KeyDetails:
    key = (await find_keys(request, key_id=key_id)).keys[0]
    if key.settings.team_id != project_id:
        raise not_found("key of this project", key_id)
    return key
