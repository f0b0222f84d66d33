"""OpenAI's organization API: users, service accounts and the members of projects."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.query import check_query, query_text
from gateway.http.routes.administration.keys import admin_json, body_of
from gateway.http.routes.organization.parts import (
    BASE,
    PROJECT,
    change,
    delete,
    end_membership,
    expiry,
    find,
    limit_of_page,
    make,
    make_key,
    member_of,
    members,
    one,
    require_person,
    set_member,
)
from gateway.http.schemas.administration.organization import (
    AccountKeyRequest,
    ChangeProjectUserRequest,
    ChangeServiceAccountRequest,
    ChangeUserRoleRequest,
    ProjectUserRequest,
    ServiceAccountRequest,
)
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import KeySettings, Resource, UserKind, UserSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_ACCOUNTS: Final = f"{PROJECT}/service_accounts"
_ACCOUNT: Final = f"{_ACCOUNTS}/{{account_id}}"
_MEMBERS, _MEMBER = f"{PROJECT}/users", f"{PROJECT}/users/{{user_id}}"
_USERS: Final = f"{BASE}/users"


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
    # A task of its own: it goes on to a state that can be undone whoever stops waiting for it.
    making = asyncio.get_running_loop().create_task(_make_account(request, project_id, body))
    try:
        _, record = await asyncio.shield(making)
    except asyncio.CancelledError:
        _UNDOING.add(undoing := asyncio.ensure_future(_undo(request, making)))
        undoing.add_done_callback(_UNDOING.discard)
        raise
    return admin_json(record)


_UNDOING: Final[set["asyncio.Future[None]"]] = set()
"""Nothing else refers to them."""


async def _make_account(
    request: Request, project_id: str, body: ServiceAccountRequest
) -> tuple[Resource, dict[str, Any]]:
    """An account that is a member, with its key, and what is told of both; or nothing of it."""
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
    except BaseException:
        await delete(request, "user", account.resource_id)  # nothing half-done
        raise
    return account, record


async def _undo(request: Request, making: "asyncio.Task[tuple[Resource, dict[str, Any]]]") -> None:
    """Take an account back whose key nobody will ever see."""
    await asyncio.wait((making,))
    if making.cancelled() or making.exception() is not None:
        return  # it took itself back
    await delete(request, "user", making.result()[0].resource_id)


@router.get(_ACCOUNTS)
async def list_service_accounts(request: Request, project_id: str) -> Response:
    """The service accounts of a project."""
    return await _list_members(request, project_id, "service_account")


@router.get(_ACCOUNT)
async def get_service_account(request: Request, project_id: str, account_id: str) -> Response:
    """One service account of a project."""
    account, role, _ = await member_of(request, project_id, account_id, "service_account")
    return admin_json(shapes.service_account(account, role))


@router.post(_ACCOUNT, openapi_extra=body_schema(ChangeServiceAccountRequest))
async def change_service_account(request: Request, project_id: str, account_id: str) -> Response:
    """Rename a service account, or give it another role in its project."""
    body = await body_of(request, ChangeServiceAccountRequest)
    account, role, _ = await member_of(request, project_id, account_id, "service_account")
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
    await member_of(request, project_id, account_id, "service_account")
    await delete(request, "user", account_id)
    return admin_json(shapes.deleted("organization.project.service_account", account_id))


@router.post(f"{_ACCOUNT}/api_keys", openapi_extra=body_schema(AccountKeyRequest))
async def create_account_key(request: Request, project_id: str, account_id: str) -> Response:
    """Make a further key of a service account; `value` is shown this once."""
    body = await body_of(request, AccountKeyRequest)
    account, _, _ = await member_of(request, project_id, account_id, "service_account")
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
    await require_person(request, body.user_id)
    await set_member(request, project_id, body.user_id, body.role)
    user, role, added_at = await member_of(request, project_id, body.user_id, "person")
    return admin_json(shapes.project_user(user, role, added_at))


@router.get(_MEMBER)
async def get_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """One user of a project."""
    return admin_json(shapes.project_user(*await member_of(request, project_id, user_id, "person")))


@router.post(_MEMBER, openapi_extra=body_schema(ChangeProjectUserRequest))
async def change_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """Give a user another role in a project."""
    body = await body_of(request, ChangeProjectUserRequest)
    user, _, added_at = await member_of(request, project_id, user_id, "person")
    await set_member(request, project_id, user_id, body.role)
    return admin_json(shapes.project_user(user, body.role, added_at))


@router.delete(_MEMBER)
async def remove_project_user(request: Request, project_id: str, user_id: str) -> Response:
    """End a membership."""
    await require_person(request, user_id)
    await end_membership(request, project_id, user_id)
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


async def _list_members(request: Request, project_id: str, kind: UserKind) -> Response:
    check_query(request, "after", "limit")
    found, has_more = await members(
        request, project_id, kind, limit_of_page(request), query_text(request, "after")
    )
    data = [
        shapes.service_account(user, role)
        if kind == "service_account"
        else shapes.project_user(user, role, added_at)
        for user, role, added_at in found
    ]
    return admin_json(shapes.page(data, has_more=has_more))
