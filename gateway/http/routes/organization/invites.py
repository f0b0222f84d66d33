"""OpenAI's organization API: invitations, which are the way to make users there.

This server sends no mail and lets nobody sign up, so an invitation makes the user at once and is
accepted when it is made. Users that came so have the tag `invited`.
"""

from collections.abc import Mapping
from typing import Final

from fastapi import APIRouter, Request, Response

from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.query import check_query, query_text
from gateway.http.routes.administration.keys import admin_json, body_of
from gateway.http.routes.organization.parts import (
    BASE,
    delete,
    find,
    limit_of_page,
    make,
    not_found,
    one,
    set_member,
    to_its_end,
)
from gateway.http.schemas.administration.organization import InviteRequest
from gateway.http.schemas.base.body import body_schema
from protocol.wire.messages import MemberRole, PrincipalRole, Resource, UserSettings

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

TAG: Final = "invited"
_INVITES: Final = f"{BASE}/invites"
_INVITE: Final = f"{_INVITES}/{{invite_id}}"


@router.post(_INVITES, openapi_extra=body_schema(InviteRequest))
async def create_invite(request: Request) -> Response:
    """Make a user and its memberships, or nothing of both."""
    body = await body_of(request, InviteRequest)
    projects: dict[str, MemberRole] = {one.id: one.role for one in body.projects or ()}
    role: PrincipalRole = "admin" if body.role == "owner" else "user"
    return admin_json(shapes.invite(await invite(request, body.email, role, projects), projects))


async def invite(
    request: Request, email: str, role: PrincipalRole, projects: Mapping[str, MemberRole]
) -> Resource:
    """Make a user and its memberships; it is done, or taken back, whoever stops waiting for it."""
    return await to_its_end(_make(request, email, role, projects))


async def _make(
    request: Request, email: str, role: PrincipalRole, projects: Mapping[str, MemberRole]
) -> Resource:
    for project_id in projects:
        await one(request, "team", project_id)
    settings = UserSettings(name=email, email=email, role=role, tags=(TAG,))
    user = await make(request, "user", settings)
    try:
        for project_id, member_role in projects.items():
            await set_member(request, project_id, user.resource_id, member_role)
        return await one(request, "user", user.resource_id) if projects else user
    except BaseException:
        await delete(request, "user", user.resource_id)  # nothing half-done
        raise


@router.get(_INVITES)
async def list_invites(request: Request) -> Response:
    """A page of those who were invited, newest first."""
    check_query(request, "after", "limit")
    found = await find(
        request,
        "user",
        tag=TAG,
        limit=limit_of_page(request),
        after_id=query_text(request, "after"),
    )
    data = [shapes.invite(user) for user in found.resources]
    return admin_json(shapes.page(data, has_more=found.has_more))


@router.get(_INVITE)
async def get_invite(request: Request, invite_id: str) -> Response:
    """One invitation, by the id of its user."""
    return admin_json(shapes.invite(await invited(request, invite_id)))


@router.delete(_INVITE)
async def delete_invite(request: Request, invite_id: str) -> Response:
    """An invitation that was accepted can't be taken back.

    Raises:
        InvalidRequestError: Always.
    """
    await invited(request, invite_id)
    raise InvalidRequestError(
        f"The invitation '{invite_id}' was accepted when it was made; delete the user instead.",
        param="invite_id",
    )


async def invited(request: Request, user_id: str) -> Resource:
    """A user that came by an invitation.

    Raises:
        RemoteFailureError: There is none of this id.
    """
    user = await one(request, "user", user_id)
    assert isinstance(user.settings, UserSettings)
    if TAG not in user.settings.tags:
        raise not_found("invitation", user_id)
    return user
