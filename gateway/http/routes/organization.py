"""OpenAI's organization API: projects, keys, users, service accounts and the audit log."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError, RemoteFailureError
from gateway.http.access import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import query_number, query_text
from gateway.http.routes.admin import (
    actor_of,
    admin_json,
    administer_keys,
    body_of,
    body_schema,
    new_key_secret,
)
from gateway.http.routes.resources import administer_resources
from gateway.http.schemas.organization import (
    AccountKeyRequest,
    AdminKeyRequest,
    ChangeProjectKeyRequest,
    ChangeProjectUserRequest,
    ChangeServiceAccountRequest,
    ChangeUserRoleRequest,
    ProjectRequest,
    ProjectUserRequest,
    ServiceAccountRequest,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    AuditPage,
    KeyDetails,
    KeySettings,
    KeysFound,
    MemberRole,
    Resource,
    ResourceKind,
    ResourceSettings,
    ResourcesFound,
    TeamSettings,
    UserSettings,
)

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

BASE: Final = "/v1/organization"
PROJECTS: Final = f"{BASE}/projects"
PROJECT: Final = f"{PROJECTS}/{{project_id}}"
_KEYS, _KEY = f"{PROJECT}/api_keys", f"{PROJECT}/api_keys/{{key_id}}"
_ACCOUNTS: Final = f"{PROJECT}/service_accounts"
_ACCOUNT: Final = f"{_ACCOUNTS}/{{account_id}}"
_MEMBERS, _MEMBER = f"{PROJECT}/users", f"{PROJECT}/users/{{user_id}}"
_ADMIN_KEYS: Final = f"{BASE}/admin_api_keys"
_USERS: Final = f"{BASE}/users"
DEFAULT_PAGE: Final = 20
MAX_PAGE: Final = 100
_MAX_SCANNED_PAGES: Final = 20
"""Of a thousand entries each: what an audit query with filters looks at, at most."""


def check_query(request: Request, *known: str) -> None:
    """Refuse what would be left aside.

    Raises:
        InvalidRequestError: The query names something that this server doesn't heed.
    """
    for name in request.query_params:
        if name not in known:
            raise InvalidRequestError(f"`{name[:64]}` has no meaning here.", param=name[:64])


def limit_of_page(request: Request) -> int:
    """`limit`, at most a hundred as there."""
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {MAX_PAGE}.", param="limit")
    return DEFAULT_PAGE if limit is None else limit


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
    is_all = request.query_params.get("include_archived", "").lower() == "true"
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
    """A page of keys of role admin, newest first."""
    check_query(request, "after", "limit", "order")
    if query_text(request, "order", one_of=("asc", "desc")) == "asc":
        raise InvalidRequestError("Keys are listed newest first only.", param="order")
    found = await find_keys(
        request,
        role="admin",
        limit=limit_of_page(request),
        after_key_id=query_text(request, "after"),
    )
    return admin_json(
        shapes.page([shapes.admin_key(key) for key in found.keys], has_more=found.has_more)
    )


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
    await one(request, "team", project_id)
    found = await find_keys(
        request,
        team_id=project_id,
        status="active" if access == "active" else "",
        limit=limit_of_page(request),
        after_key_id=query_text(request, "after"),
    )
    data = [shapes.project_key(key, await _owner(request, key)) for key in found.keys]
    return admin_json(shapes.page(data, has_more=found.has_more))


@router.get(_KEY)
async def get_project_key(request: Request, project_id: str, key_id: str) -> Response:
    """One key of a project."""
    key = await _project_key(request, project_id, key_id)
    return admin_json(shapes.project_key(key, await _owner(request, key)))


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
    key = (await administer_keys(request, question)).keys[0]
    return admin_json(shapes.project_key(key, await _owner(request, key)))


@router.delete(_KEY)
async def delete_project_key(request: Request, project_id: str, key_id: str) -> Response:
    """Forget a key of a project."""
    await _project_key(request, project_id, key_id)
    await _delete_key(request, key_id)
    return admin_json(shapes.deleted("organization.project.api_key", key_id))


# Service accounts.


@router.post(_ACCOUNTS, openapi_extra=body_schema(ServiceAccountRequest))
async def create_service_account(request: Request, project_id: str) -> Response:
    """Make a service account in a project, and a key for it, shown this once."""
    body = await body_of(request, ServiceAccountRequest)
    if body.create_service_account_only and body.expires_in_seconds is not None:
        raise InvalidRequestError(
            "Without a key there is nothing to expire.", param="expires_in_seconds"
        )
    await one(request, "team", project_id)
    account = await make(request, "user", UserSettings(name=body.name, kind="service_account"))
    try:
        await set_member(request, project_id, account.resource_id, "member")
        record = shapes.service_account(account, "member") | {"api_key": None}
        if not body.create_service_account_only:
            settings = KeySettings(
                name=body.name,
                user_id=account.resource_id,
                team_id=project_id,
                expires_at=expiry(request, body.expires_in_seconds),
            )
            record["api_key"] = shapes.account_key(*await make_key(request, settings))
    except Exception:
        await delete(request, "user", account.resource_id)  # nothing half-done
        raise
    return admin_json(record)


@router.get(_ACCOUNTS)
async def list_service_accounts(request: Request, project_id: str) -> Response:
    """The service accounts of a project."""
    return await _list_members(request, project_id, "service_account")


@router.get(_ACCOUNT)
async def get_service_account(request: Request, project_id: str, account_id: str) -> Response:
    """One service account of a project."""
    account, role, _ = await _member(request, project_id, account_id, "service_account")
    return admin_json(shapes.service_account(account, role))


@router.post(_ACCOUNT, openapi_extra=body_schema(ChangeServiceAccountRequest))
async def change_service_account(request: Request, project_id: str, account_id: str) -> Response:
    """Rename a service account, or give it another role in its project."""
    body = await body_of(request, ChangeServiceAccountRequest)
    account, role, _ = await _member(request, project_id, account_id, "service_account")
    if body.name is not None:
        settings = UserSettings(name=body.name)
        account = await change(request, "user", account_id, ("name",), settings)
    if body.role is not None:
        await set_member(request, project_id, account_id, body.role)
        role = body.role
    return admin_json(shapes.service_account(account, role))


@router.delete(_ACCOUNT)
async def delete_service_account(request: Request, project_id: str, account_id: str) -> Response:
    """Forget a service account; its keys are revoked."""
    await _member(request, project_id, account_id, "service_account")
    await delete(request, "user", account_id)
    return admin_json(shapes.deleted("organization.project.service_account", account_id))


@router.post(f"{_ACCOUNT}/api_keys", openapi_extra=body_schema(AccountKeyRequest))
async def create_account_key(request: Request, project_id: str, account_id: str) -> Response:
    """Make a further key of a service account; `value` is shown this once."""
    body = await body_of(request, AccountKeyRequest)
    account, _, _ = await _member(request, project_id, account_id, "service_account")
    assert isinstance(account.settings, UserSettings)
    settings = KeySettings(
        name=body.name or account.settings.name,
        user_id=account_id,
        team_id=project_id,
        scopes=None if body.scopes is None else tuple(body.scopes),
        expires_at=expiry(request, body.expires_in_seconds),
    )
    return admin_json(shapes.account_key(*await make_key(request, settings)))


# Users.


@router.get(_MEMBERS)
async def list_project_users(request: Request, project_id: str) -> Response:
    """The people of a project."""
    return await _list_members(request, project_id, "person")


@router.post(_MEMBERS, openapi_extra=body_schema(ProjectUserRequest))
async def add_project_user(request: Request, project_id: str) -> Response:
    """Make a user a member of a project."""
    body = await body_of(request, ProjectUserRequest)
    await set_member(request, project_id, body.user_id, body.role)
    user, role, added_at = await _member(request, project_id, body.user_id, "person")
    return admin_json(shapes.project_user(user, role, added_at))


@router.get(_MEMBER)
async def get_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """One user of a project."""
    return admin_json(shapes.project_user(*await _member(request, project_id, user_id, "person")))


@router.post(_MEMBER, openapi_extra=body_schema(ChangeProjectUserRequest))
async def change_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """Give a user another role in a project."""
    body = await body_of(request, ChangeProjectUserRequest)
    user, _, added_at = await _member(request, project_id, user_id, "person")
    await set_member(request, project_id, user_id, body.role)
    return admin_json(shapes.project_user(user, body.role, added_at))


@router.delete(_MEMBER)
async def remove_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """End a membership."""
    question = bridge.set_member(
        request.state.request_id, actor_of(request), project_id, user_id, ""
    )
    await administer_resources(request, question)
    return admin_json(shapes.deleted("organization.project.user", user_id))


@router.get(_USERS)
async def list_users(request: Request) -> Response:
    """A page of users, newest first."""
    check_query(request, "after", "limit")
    found = await find(
        request, "user", limit=limit_of_page(request), after_id=query_text(request, "after")
    )
    data = [shapes.organization_user(user) for user in found.resources]
    return admin_json(shapes.page(data, has_more=found.has_more))


@router.get(f"{_USERS}/{{user_id}}")
async def get_user(request: Request, user_id: str) -> Response:
    """One user."""
    return admin_json(shapes.organization_user(await one(request, "user", user_id)))


@router.post(f"{_USERS}/{{user_id}}", openapi_extra=body_schema(ChangeUserRoleRequest))
async def change_user(request: Request, user_id: str) -> Response:
    """Give a user another role: no key of it does more."""
    role = (await body_of(request, ChangeUserRoleRequest)).role
    settings = UserSettings(name="", role="admin" if role == "owner" else "user")
    user = await change(request, "user", user_id, ("role",), settings)
    return admin_json(shapes.organization_user(user))


@router.delete(f"{_USERS}/{{user_id}}")
async def delete_user(request: Request, user_id: str) -> Response:
    """Forget a user; its keys are revoked."""
    await delete(request, "user", user_id)
    return admin_json(shapes.deleted("organization.user", user_id))


# The audit log.


@router.get(f"{BASE}/audit_logs")
async def list_audit_logs(request: Request) -> Response:
    """A page of the audit log, newest first, filtered as there."""
    check_query(
        request,
        *("limit", "after", "event_types[]", "actor_ids[]", "resource_ids[]", "project_ids[]"),
        *(f"effective_at[{bound}]" for bound in ("gt", "gte", "lt", "lte")),
    )
    query = request.query_params
    wanted = {
        "type": set(query.getlist("event_types[]")),
        "actor": set(query.getlist("actor_ids[]")),
        "subject": set(query.getlist("resource_ids[]")) | set(query.getlist("project_ids[]")),
    }
    limit, after_seq = limit_of_page(request), _seq(query_text(request, "after"))
    since_s, until_s = _effective_at(request)
    found: list[dict[str, Any]] = []
    for _ in range(_MAX_SCANNED_PAGES):
        question = bridge.read_audit(
            request.state.request_id,
            actor_of(request),
            since_ms=None if since_s is None else since_s * 1000,
            until_ms=None if until_s is None else until_s * 1000,
            after_seq=after_seq,
            limit=1000 if any(wanted.values()) else limit + 1,
        )
        page = await parts_of(request).auth.administer(question, AuditPage)
        found += [
            shapes.audit_event(entry)
            for entry in page.entries
            if (not wanted["type"] or shapes.event_type(entry.action) in wanted["type"])
            and (not wanted["actor"] or entry.actor in wanted["actor"])
            and (not wanted["subject"] or entry.subject in wanted["subject"])
        ]
        if len(found) > limit or not page.has_more:
            break
        after_seq = page.entries[-1].seq
    return admin_json(shapes.page(found[:limit], has_more=len(found) > limit))


def _effective_at(request: Request) -> tuple[int | None, int | None]:
    """From when on, and before when, in Unix seconds."""
    gt, gte, lt, lte = (
        query_number(request, f"effective_at[{bound}]") for bound in ("gt", "gte", "lt", "lte")
    )
    since = [one for one in (gte, None if gt is None else gt + 1) if one is not None]
    until = [one for one in (lt, None if lte is None else lte + 1) if one is not None]
    return max(since, default=None), min(until, default=None)


def _seq(audit_id: str) -> int | None:
    if not audit_id:
        return None
    number = audit_id.removeprefix("audit_log-")
    if not (number.isascii() and number.isdecimal() and len(number) <= 15):
        raise InvalidRequestError("`after` must be the id of an entry.", param="after")
    return int(number)


# What the routes are made of.


async def find(request: Request, kind: ResourceKind, **wanted: Any) -> ResourcesFound:
    """A page of resources."""
    question = bridge.find_resources(
        request.state.request_id, actor_of(request), kind=kind, **wanted
    )
    return await parts_of(request).auth.administer(question, ResourcesFound)


async def one(request: Request, kind: ResourceKind, resource_id: str) -> Resource:
    """One resource.

    Raises:
        RemoteFailureError: There is none.
    """
    return (await find(request, kind, resource_id=resource_id)).resources[0]


async def make(request: Request, kind: ResourceKind, settings: ResourceSettings) -> Resource:
    """Make a resource."""
    question = bridge.make_resource(request.state.request_id, actor_of(request), kind, settings)
    return (await administer_resources(request, question))[0]


async def change(
    request: Request,
    kind: ResourceKind,
    resource_id: str,
    fields: tuple[str, ...],
    settings: ResourceSettings,
) -> Resource:
    """Change a resource."""
    question = bridge.update_resource(
        request.state.request_id, actor_of(request), kind, resource_id, fields, settings
    )
    return (await administer_resources(request, question))[0]


async def delete(request: Request, kind: ResourceKind, resource_id: str) -> None:
    """Delete a resource."""
    question = bridge.change_resource(
        request.state.request_id, actor_of(request), kind, resource_id, "delete"
    )
    await administer_resources(request, question)


async def set_member(request: Request, project_id: str, user_id: str, role: MemberRole) -> None:
    """Make a user a member of a project."""
    question = bridge.set_member(
        request.state.request_id, actor_of(request), project_id, user_id, role
    )
    await administer_resources(request, question)


async def find_keys(request: Request, **wanted: Any) -> KeysFound:
    """A page of keys."""
    question = bridge.find_keys(request.state.request_id, actor_of(request), **wanted)
    return await parts_of(request).auth.administer(question, KeysFound)


async def make_key(request: Request, settings: KeySettings) -> tuple[KeyDetails, str]:
    """Make a key; it and its secret."""
    secret, digest, hint = new_key_secret()
    question = bridge.make_key(
        request.state.request_id,
        actor_of(request),
        key_digest=digest,
        hint=hint,
        settings=settings,
    )
    return (await administer_keys(request, question)).keys[0], secret


def expiry(request: Request, in_seconds: int | None) -> int | None:
    """When something ends that ends in so many seconds."""
    return None if in_seconds is None else int(parts_of(request).wall_clock()) + in_seconds


async def _delete_key(request: Request, key_id: str) -> None:
    question = bridge.change_key_status(
        request.state.request_id, actor_of(request), key_id, "delete"
    )
    await administer_keys(request, question)


async def _admin_key(request: Request, key_id: str) -> KeyDetails:
    key = (await find_keys(request, key_id=key_id)).keys[0]
    if key.settings.role != "admin":
        raise _not_found("admin key", key_id)
    return key


async def _project_key(request: Request, project_id: str, key_id: str) -> KeyDetails:
    key = (await find_keys(request, key_id=key_id)).keys[0]
    if key.settings.team_id != project_id:
        raise _not_found("key of this project", key_id)
    return key


async def _owner(request: Request, key: KeyDetails) -> Resource | None:
    """The user of a key; None when it has none, or none any more."""
    if not key.settings.user_id:
        return None
    try:
        return await one(request, "user", key.settings.user_id)
    except RemoteFailureError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return None
        raise


async def _member(
    request: Request, project_id: str, user_id: str, kind: str
) -> tuple[Resource, str, int]:
    """A user of a kind in a project, its role, and since when it is a member."""
    team, user = await one(request, "team", project_id), await one(request, "user", user_id)
    assert isinstance(user.settings, UserSettings)
    for member in team.members:
        if member.user_id == user_id and user.settings.kind == kind:
            return user, member.role, member.added_at
    raise _not_found(f"{kind} of this project".replace("_", " "), user_id)


async def _list_members(request: Request, project_id: str, kind: str) -> Response:
    check_query(request, "after", "limit")
    limit, after = limit_of_page(request), query_text(request, "after")
    team = await one(request, "team", project_id)
    roles = {member.user_id: member for member in team.members}
    found: list[dict[str, Any]] = []
    while len(found) <= limit:
        page = await find(request, "user", member=project_id, after_id=after, limit=1000)
        for user in page.resources:
            member = roles.get(user.resource_id)
            is_wanted = isinstance(user.settings, UserSettings) and user.settings.kind == kind
            if member is not None and is_wanted:
                found.append(
                    shapes.service_account(user, member.role)
                    if kind == "service_account"
                    else shapes.project_user(user, member.role, member.added_at)
                )
        if not page.has_more:
            break
        after = page.resources[-1].resource_id
    return admin_json(shapes.page(found[:limit], has_more=len(found) > limit))


def _not_found(what: str, resource_id: str) -> RemoteFailureError:
    return RemoteFailureError(
        f"There is no {what} '{resource_id[:100]}'.", code=ErrorCode.NOT_FOUND
    )
