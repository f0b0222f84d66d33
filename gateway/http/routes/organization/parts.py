"""What the routes of OpenAI's organization API are made of."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeVar

from fastapi import Request

from gateway import bridge
from gateway.errors import InvalidRequestError, RemoteFailureError
from gateway.http.parts import parts_of
from gateway.http.query import query_number
from gateway.http.routes.administration.keys import actor_of, administer_keys, new_key_secret
from gateway.http.routes.administration.resources import administer_resources
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    KeyDetails,
    KeySettings,
    KeysFound,
    MemberRole,
    Resource,
    ResourceKind,
    ResourceSettings,
    ResourcesFound,
    UserKind,
    UserSettings,
)

AnswerT = TypeVar("AnswerT")

BASE: Final = "/v1/organization"
PROJECTS: Final = f"{BASE}/projects"
PROJECT: Final = f"{PROJECTS}/{{project_id}}"
DEFAULT_PAGE: Final = 20
MAX_PAGE: Final = 100


def limit_of_page(request: Request) -> int:
    """`limit`, at most a hundred as there."""
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {MAX_PAGE}.", param="limit")
    return DEFAULT_PAGE if limit is None else limit


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
    if not resource_id:  # it would be none in particular
        raise not_found(kind, resource_id)
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


async def require_person(request: Request, user_id: str) -> None:
    """See that a user isn't a service account, whose memberships have routes of their own.

    Raises:
        RemoteFailureError: It is one, or there is none.
    """
    user = await one(request, "user", user_id)
    if not isinstance(user.settings, UserSettings) or user.settings.kind != "person":
        raise not_found("user", user_id)


async def member_of(
    request: Request, team_id: str, user_id: str, kind: UserKind
) -> tuple[Resource, MemberRole, int]:
    """A user of a kind in a team, its role, and since when it is a member.

    Raises:
        RemoteFailureError: There is none.
    """
    team, user = await one(request, "team", team_id), await one(request, "user", user_id)
    assert isinstance(user.settings, UserSettings)
    for member in team.members:
        if member.user_id == user_id and user.settings.kind == kind:
            return user, member.role, member.added_at
    raise not_found(f"{kind} of this project".replace("_", " "), user_id)


async def members(
    request: Request, team_id: str, kind: UserKind, limit: int, after: str
) -> tuple[list[tuple[Resource, MemberRole, int]], bool]:
    """A page of the users of a kind in a team, as `member_of` tells of one; whether there are more.

    Args:
        request: Of an administrator.
        team_id: Of the team.
        kind: Of the users.
        limit: So many at most.
        after: The id of the last one of the page before.
    """
    team = await one(request, "team", team_id)
    known = {member.user_id: member for member in team.members}
    found: list[tuple[Resource, MemberRole, int]] = []
    while len(found) <= limit:
        page = await find(request, "user", member=team_id, after_id=after, limit=1000)
        for user in page.resources:
            member = known.get(user.resource_id)
            is_wanted = isinstance(user.settings, UserSettings) and user.settings.kind == kind
            if member is not None and is_wanted:
                found.append((user, member.role, member.added_at))
        if not page.has_more:
            break
        after = page.resources[-1].resource_id
    return found[:limit], len(found) > limit


async def end_membership(request: Request, team_id: str, user_id: str) -> None:
    """A user is no member any more."""
    question = bridge.set_member(request.state.request_id, actor_of(request), team_id, user_id, "")
    await administer_resources(request, question)


async def find_keys(request: Request, **wanted: Any) -> KeysFound:
    """A page of keys."""
    question = bridge.find_keys(request.state.request_id, actor_of(request), **wanted)
    return await parts_of(request).auth.administer(question, KeysFound)


async def owner_of(request: Request, key: KeyDetails) -> Resource | None:
    """The user of a key; None when it has none, or none any more."""
    if not key.settings.user_id:
        return None
    try:
        return await one(request, "user", key.settings.user_id)
    except RemoteFailureError as error:
        if error.code is ErrorCode.NOT_FOUND:
            return None
        raise


async def owners_of(request: Request, keys: Iterable[KeyDetails]) -> list[Resource | None]:
    """The user of each key, as `owner_of` tells of one; a user of several keys is read once."""
    found: dict[str | None, Resource | None] = {}
    owners: list[Resource | None] = []
    for key in keys:
        user_id = key.settings.user_id
        if user_id not in found:
            found[user_id] = await owner_of(request, key)
        owners.append(found[user_id])
    return owners


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


async def to_its_end(steps: Coroutine[Any, Any, AnswerT]) -> AnswerT:
    """Do all of several steps, or take them back, also when the caller stops waiting for it."""
    task = asyncio.get_running_loop().create_task(steps)
    _GOING_ON.add(task)
    task.add_done_callback(_GOING_ON.discard)
    return await asyncio.shield(task)


_GOING_ON: Final[set["asyncio.Task[Any]"]] = set()
"""Nothing else refers to them."""


def expiry(request: Request, in_seconds: int | None) -> int | None:
    """When something ends that ends in so many seconds."""
    return None if in_seconds is None else int(parts_of(request).wall_clock()) + in_seconds


def not_found(what: str, resource_id: str) -> RemoteFailureError:
    """The error that says so."""
    return RemoteFailureError(
        f"There is no {what} '{resource_id[:100]}'.", code=ErrorCode.NOT_FOUND
    )
