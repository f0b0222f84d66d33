"""Anthropic's organization API: service accounts, and the workspaces that they are in."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.http.access.guard import GuardedRoute
from gateway.http.query import check_query, query_flag, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json, body_of
from gateway.http.routes.administration.resources import administer_resources
from gateway.http.routes.anthropic_organization.members import role_here, role_there
from gateway.http.routes.anthropic_organization.workspaces import BASE, WORKSPACE, time_text
from gateway.http.routes.organization.parts import (
    change,
    end_membership,
    find,
    limit_of_page,
    make,
    member_of,
    members,
    not_found,
    one,
    set_member,
)
from gateway.http.schemas.administration.organization import (
    AccountMemberRequest,
    AccountOfWorkspaceRequest,
    ChangeWorkspaceAccountRequest,
    ChangeWorkspaceMemberRequest,
    WorkspaceAccountRequest,
)
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import MemberRole, Resource, UserSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_ACCOUNTS, _ACCOUNT = f"{BASE}/service_accounts", f"{BASE}/service_accounts/{{account_id}}"
_OF_WORKSPACE: Final = f"{WORKSPACE}/service_accounts"
_DESCRIPTION: Final = "description"
"""Of an account's metadata."""


@router.post(_ACCOUNTS, openapi_extra=body_schema(WorkspaceAccountRequest))
async def create_account(request: Request) -> Response:
    """Make a service account, which is a user here; its keys are made by this server's routes."""
    body = await body_of(request, WorkspaceAccountRequest)
    settings = UserSettings(
        name=body.name, kind="service_account", metadata=_described({}, body.description)
    )
    return admin_json(_account(await make(request, "user", settings)))


@router.get(_ACCOUNTS)
async def list_accounts(request: Request) -> Response:
    """A page of service accounts, newest first; archived ones only with `include_archived`."""
    check_query(request, "include_archived", "limit", "page")
    limit, after = limit_of_page(request), query_text(request, "page")
    status = "" if query_flag(request, "include_archived") else "active"
    found: list[Resource] = []
    while len(found) <= limit:
        page = await find(request, "user", status=status, after_id=after, limit=1000)
        found += [one for one in page.resources if _is_account(one)]
        if not page.has_more:
            break
        after = page.resources[-1].resource_id
    return _page([_account(one) for one in found], limit, "id")


@router.get(_ACCOUNT)
async def get_account(request: Request, account_id: str) -> Response:
    """One service account."""
    return admin_json(_account(await _the_account(request, account_id)))


@router.post(_ACCOUNT, openapi_extra=body_schema(ChangeWorkspaceAccountRequest))
async def change_account(request: Request, account_id: str) -> Response:
    """Say something else about a service account; null takes the description away."""
    body = await body_of(request, ChangeWorkspaceAccountRequest)
    account = await _the_account(request, account_id)
    fields: list[str] = []
    metadata: dict[str, str] = {}
    if _DESCRIPTION in body.model_fields_set:
        assert isinstance(account.settings, UserSettings)
        metadata = _described(account.settings.metadata, body.description)
        fields.append("metadata")
    if body.organization_role is not None:
        fields.append("role")
    if fields:
        settings = UserSettings(name="", role="user", metadata=metadata)
        account = await change(request, "user", account_id, tuple(fields), settings)
    return admin_json(_account(account))


@router.post(f"{_ACCOUNT}/archive")
async def archive_account(request: Request, account_id: str) -> Response:
    """Let the keys of a service account open nothing any more; its user is suspended."""
    await _the_account(request, account_id)
    question = bridge.change_resource(
        request.state.request_id, actor_of(request), "user", account_id, "suspend"
    )
    return admin_json(_account((await administer_resources(request, question))[0]))


# The workspaces of an account.


@router.get(f"{_ACCOUNT}/workspaces")
async def list_workspaces_of_account(request: Request, account_id: str) -> Response:
    """A page of the workspaces that a service account is in."""
    check_query(request, "limit", "page")
    account = await _the_account(request, account_id)
    limit, after = limit_of_page(request), query_text(request, "page")
    ids = [team_id for team_id in sorted(account.team_ids) if team_id > after][: limit + 1]
    data = [
        _member(team_id, account_id, (await _role(request, team_id, account_id))) for team_id in ids
    ]
    return _page(data, limit, "workspace_id")


@router.post(f"{_ACCOUNT}/workspaces", openapi_extra=body_schema(AccountMemberRequest))
async def add_workspace_of_account(request: Request, account_id: str) -> Response:
    """Put a service account into a workspace."""
    body = await body_of(request, AccountMemberRequest)
    return await _set(request, body.workspace_id, account_id, body.workspace_role)


@router.delete(f"{_ACCOUNT}/workspaces/{{workspace_id}}")
async def remove_workspace_of_account(
    request: Request, account_id: str, workspace_id: str
) -> Response:
    """Take a service account out of a workspace."""
    return await _end(request, workspace_id, account_id)


# The accounts of a workspace.


@router.get(_OF_WORKSPACE)
async def list_accounts_of_workspace(request: Request, workspace_id: str) -> Response:
    """A page of the service accounts in a workspace."""
    check_query(request, "limit", "page")
    limit, after = limit_of_page(request), query_text(request, "page")
    found, has_more = await members(request, workspace_id, "service_account", limit, after)
    data = [_member(workspace_id, user.resource_id, role) for user, role, _ in found]
    next_page = data[-1]["service_account_id"] if has_more else None
    return admin_json({"data": data, "next_page": next_page})


@router.post(_OF_WORKSPACE, openapi_extra=body_schema(AccountOfWorkspaceRequest))
async def add_account_of_workspace(request: Request, workspace_id: str) -> Response:
    """Put a service account into a workspace."""
    body = await body_of(request, AccountOfWorkspaceRequest)
    return await _set(request, workspace_id, body.service_account_id, body.workspace_role)


@router.get(f"{_OF_WORKSPACE}/{{account_id}}")
async def get_account_of_workspace(
    request: Request, workspace_id: str, account_id: str
) -> Response:
    """One service account in a workspace."""
    role = await _role(request, workspace_id, account_id)
    return admin_json(_member(workspace_id, account_id, role))


@router.post(
    f"{_OF_WORKSPACE}/{{account_id}}", openapi_extra=body_schema(ChangeWorkspaceMemberRequest)
)
async def change_account_of_workspace(
    request: Request, workspace_id: str, account_id: str
) -> Response:
    """Give a service account another role in a workspace."""
    body = await body_of(request, ChangeWorkspaceMemberRequest)
    await member_of(request, workspace_id, account_id, "service_account")
    return await _set(request, workspace_id, account_id, body.workspace_role)


@router.delete(f"{_OF_WORKSPACE}/{{account_id}}")
async def remove_account_of_workspace(
    request: Request, workspace_id: str, account_id: str
) -> Response:
    """Take a service account out of a workspace."""
    return await _end(request, workspace_id, account_id)


def _is_account(user: Resource) -> bool:
    return isinstance(user.settings, UserSettings) and user.settings.kind == "service_account"


async def _the_account(request: Request, account_id: str) -> Resource:
    """A user that is a service account.

    Raises:
        RemoteFailureError: There is none.
    """
    user = await one(request, "user", account_id)
    if not _is_account(user):
        raise not_found("service account", account_id)
    return user


async def _role(request: Request, workspace_id: str, account_id: str) -> MemberRole:
    _, role, _ = await member_of(request, workspace_id, account_id, "service_account")
    return role


async def _set(request: Request, workspace_id: str, account_id: str, role: str) -> Response:
    await _the_account(request, account_id)
    await set_member(request, workspace_id, account_id, role_here(role))
    told = await _role(request, workspace_id, account_id)
    return admin_json(_member(workspace_id, account_id, told))


async def _end(request: Request, workspace_id: str, account_id: str) -> Response:
    await member_of(request, workspace_id, account_id, "service_account")
    await end_membership(request, workspace_id, account_id)
    return admin_json(
        {
            "type": "service_account_workspace_member_deleted",
            "service_account_id": account_id,
            "workspace_id": workspace_id,
        }
    )


def _page(records: list[dict[str, Any]], limit: int, id_field: str) -> Response:
    """Of one record more than are wanted, if there are more."""
    next_page = records[limit - 1][id_field] if len(records) > limit else None
    return admin_json({"data": records[:limit], "next_page": next_page})


def _described(metadata: dict[str, str], description: str | None) -> dict[str, str]:
    kept = {name: text for name, text in metadata.items() if name != _DESCRIPTION}
    return kept if description is None else kept | {_DESCRIPTION: description}


def _account(user: Resource) -> dict[str, Any]:
    settings = user.settings
    assert isinstance(settings, UserSettings)
    return {
        "type": "service_account",
        "id": user.resource_id,
        "name": settings.name,
        "description": settings.metadata.get(_DESCRIPTION),
        "organization_role": "admin" if settings.role == "admin" else "developer",
        "created_at": time_text(user.created_at),
        "created_by_actor_id": user.created_by or None,
        "updated_at": time_text(user.suspended_at or user.created_at),
        "updated_by_actor_id": None,
        "archived_at": time_text(user.suspended_at),
        "archived_by_actor_id": None,
    }


def _member(workspace_id: str, account_id: str, role: MemberRole) -> dict[str, Any]:
    return {
        "type": "service_account_workspace_member",
        "service_account_id": account_id,
        "workspace_id": workspace_id,
        "workspace_role": role_there(role),
        "implicit": False,
        "created_by_actor_id": None,
    }
