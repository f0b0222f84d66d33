"""Anthropic's organization API: the members of workspaces, and invitations."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.query import check_query, query_text
from gateway.http.routes.administration.keys import admin_json, body_of
from gateway.http.routes.anthropic_organization.workspaces import (
    BASE,
    WORKSPACE,
    page_of,
    time_text,
)
from gateway.http.routes.organization.invites import TAG, invite, invited
from gateway.http.routes.organization.parts import (
    end_membership,
    find,
    limit_of_page,
    member_of,
    members,
    require_person,
    set_member,
)
from gateway.http.schemas.administration.organization import (
    AnthropicInviteRequest,
    ChangeWorkspaceMemberRequest,
    WorkspaceMemberRequest,
)
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import MemberRole, Resource, UserSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_MEMBERS, _MEMBER = f"{WORKSPACE}/members", f"{WORKSPACE}/members/{{user_id}}"
_INVITES, _INVITE = f"{BASE}/invites", f"{BASE}/invites/{{invite_id}}"
_ADMIN: Final = "workspace_admin"
"""Who owns a team here; all others are developers there."""


@router.get(_MEMBERS)
async def list_members(request: Request, workspace_id: str) -> Response:
    """The people of a workspace."""
    check_query(request, "after_id", "limit")
    found, has_more = await members(
        request, workspace_id, "person", limit_of_page(request), query_text(request, "after_id")
    )
    data = [_shape(workspace_id, user.resource_id, role) for user, role, _ in found]
    return admin_json(page_of(data, has_more=has_more, id_field="user_id"))


@router.post(_MEMBERS, openapi_extra=body_schema(WorkspaceMemberRequest))
async def add_member(request: Request, workspace_id: str) -> Response:
    """Make a user a member."""
    body = await body_of(request, WorkspaceMemberRequest)
    await require_person(request, body.user_id)
    await set_member(request, workspace_id, body.user_id, role_here(body.workspace_role))
    return await _told(request, workspace_id, body.user_id)


@router.get(_MEMBER)
async def get_member(request: Request, workspace_id: str, user_id: str) -> Response:
    """One member."""
    return await _told(request, workspace_id, user_id)


@router.post(_MEMBER, openapi_extra=body_schema(ChangeWorkspaceMemberRequest))
async def change_member(request: Request, workspace_id: str, user_id: str) -> Response:
    """Give a member another role."""
    body = await body_of(request, ChangeWorkspaceMemberRequest)
    await member_of(request, workspace_id, user_id, "person")
    await set_member(request, workspace_id, user_id, role_here(body.workspace_role))
    return await _told(request, workspace_id, user_id)


@router.delete(_MEMBER)
async def remove_member(request: Request, workspace_id: str, user_id: str) -> Response:
    """End a membership."""
    await require_person(request, user_id)
    await end_membership(request, workspace_id, user_id)
    return admin_json(
        {"type": "workspace_member_deleted", "user_id": user_id, "workspace_id": workspace_id}
    )


@router.post(_INVITES, openapi_extra=body_schema(AnthropicInviteRequest))
async def create_invite(request: Request) -> Response:
    """Make a user."""
    email = (await body_of(request, AnthropicInviteRequest)).email
    return admin_json(_invite(await invite(request, email, "user", {})))


@router.get(_INVITES)
async def list_invites(request: Request) -> Response:
    """A page of those who were invited, newest first."""
    check_query(request, "after_id", "limit")
    found = await find(
        request,
        "user",
        tag=TAG,
        limit=limit_of_page(request),
        after_id=query_text(request, "after_id"),
    )
    return admin_json(page_of(list(map(_invite, found.resources)), has_more=found.has_more))


@router.get(_INVITE)
async def get_invite(request: Request, invite_id: str) -> Response:
    """One invitation, by the id of its user."""
    return admin_json(_invite(await invited(request, invite_id)))


@router.delete(_INVITE)
async def delete_invite(request: Request, invite_id: str) -> Response:
    """An invitation that was accepted can't be taken back.

    Raises:
        InvalidRequestError: Always.
    """
    await invited(request, invite_id)
    raise InvalidRequestError(
        f"The invitation '{invite_id}' was accepted when it was made; remove the user instead.",
        param="invite_id",
    )


async def _told(request: Request, workspace_id: str, user_id: str) -> Response:
    _, role, _ = await member_of(request, workspace_id, user_id, "person")
    return admin_json(_shape(workspace_id, user_id, role))


def role_here(role: str) -> MemberRole:
    """The role in a team of a role in a workspace."""
    return "owner" if role == _ADMIN else "member"


def role_there(role: MemberRole) -> str:
    """The role in a workspace of a role in a team."""
    return _ADMIN if role == "owner" else "workspace_developer"


def _shape(workspace_id: str, user_id: str, role: MemberRole) -> dict[str, Any]:
    return {
        "type": "workspace_member",
        "user_id": user_id,
        "workspace_id": workspace_id,
        "workspace_role": role_there(role),
    }


def _invite(user: Resource) -> dict[str, Any]:
    settings = user.settings
    assert isinstance(settings, UserSettings)
    made = time_text(user.created_at)
    return {
        "type": "invite",
        "id": user.resource_id,
        "email": settings.email,
        "role": "admin" if settings.role == "admin" else "user",
        "status": "accepted",
        "invited_at": made,
        "accepted_at": made,
        "expires_at": made,
        "rbac_group_ids": [],
    }
