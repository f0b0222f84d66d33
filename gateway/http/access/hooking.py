"""Shows requests for output to the hooks of other packages, before their bodies are parsed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from fastapi import Request

from gateway.errors import GatewayError, InvalidRequestError
from gateway.hooks.hook import HookRequest
from gateway.hooks.runner import HookRunner
from gateway.http.bodies.parsers import (
    CHAT,
    COMPACT,
    COMPLETION,
    CONVERSATION,
    CONVERSATION_ITEMS,
    MESSAGES,
    RESPONSES,
    SOCKET,
)
from gateway.http.schemas.base.body import load_plain_json_object
from gateway.json_numbers import dump_integers, load_integers
from gateway.request.callers.caller import Caller
from gateway.telemetry.access_log import AccessRecord

SHOWN = frozenset(
    kind.name
    for kind in (
        *(CHAT, COMPLETION, MESSAGES, RESPONSES, SOCKET, COMPACT),
        *(CONVERSATION, CONVERSATION_ITEMS),
    )
)
"""Kinds of bodies that hooks see: what is generated from, now or in a later request."""
_KEPT_BACK = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})
_BLANK: Final = "***"
_SECRETS: Final = {"tools": ("authorization", "headers"), "mcp_servers": ("authorization_token",)}
"""Fields of the members of lists in a body: what clients give for MCP servers."""
_TELLING: Final = ("type", "server_label", "server_url", "name", "url")
"""Fields that say what a credential is for."""


async def shown_to_hooks(
    hooks: HookRunner,
    body: bytes,
    request: Request,
    caller: Caller,
    record: AccessRecord,
    identify: Callable[[], Awaitable[str]],
    *,
    endpoint: str = "",
) -> bytes:
    """A body as the hooks leave it; the very bytes, where they change nothing.

    Args:
        hooks: Which there are.
        body: As it came; of a kind that is `SHOWN`.
        request: That it came with.
        caller: Who sent it.
        record: Its line of the access log, which takes the hooks' tags.
        identify: Says whose key it is.
        endpoint: The template of the route whose body it is, where that isn't the request's own.

    Raises:
        RefusedByHookError: One refuses it.
        InvalidRequestError: It is no JSON object, or nested too deep.
        DeniedError: The key has ended meanwhile.
        GatewayError: A hook failed.
    """
    secrets = BodySecrets()
    value, before = await asyncio.to_thread(_loaded, body, secrets)
    shown = HookRequest(
        request_id=record.request_id,
        endpoint=endpoint or request.scope["route"].path,
        key_id=await identify(),
        address=caller.address,
        headers=told_headers(request.headers),
        body=value,
    )
    try:
        await hooks.refine(shown)
    finally:
        record.tags.update(shown.tags)
    after = await asyncio.to_thread(_dumped, shown.body, secrets)
    return body if after == before else after


def told_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """All headers but those that prove who somebody is."""
    return {name: value for name, value in headers.items() if name not in _KEPT_BACK}


class BodySecrets:
    """The credentials for MCP servers in a body, which hooks see as `***`.

    A hook may move, change or remove what they stand in. They come back for the server that they
    were given for, and for no other.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, dict[str, Any]] = {}

    def blanked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as hooks see it."""
        return {
            name: self._each(value, _SECRETS[name], self._blanked) if name in _SECRETS else value
            for name, value in body.items()
        }

    def restored(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as hooks leave it, with the credentials.

        Raises:
            TypeError: It holds something else than JSON.
        """
        return {
            name: self._each(value, _SECRETS[name], self._restored) if name in _SECRETS else value
            for name, value in body.items()
        }

    def _each(
        self,
        members: Any,
        fields: tuple[str, ...],
        change: Callable[[dict[str, Any], tuple[str, ...]], dict[str, Any]],
        depth: int = 0,
    ) -> Any:
        """A list with its members changed, also those of a namespace of tools."""
        if not isinstance(members, list):
            return members
        found: list[Any] = []
        for one in members:
            if isinstance(one, dict):
                one = change(one, fields)
                if depth == 0 and "tools" in one:
                    one["tools"] = self._each(one["tools"], fields, change, depth + 1)
            found.append(one)
        return found

    def _blanked(self, member: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
        secret = {name: member[name] for name in fields if member.get(name) is not None}
        if secret:
            self._kept[_told_for(member)] = secret
        return {**member, **{name: _blank(value) for name, value in secret.items()}}

    def _restored(self, member: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
        if not any(name in member for name in fields):
            return dict(member)
        kept = self._kept.get(_told_for(member), {})
        found: dict[str, Any] = {}
        for name, value in member.items():
            if name in fields and isinstance(value, dict):
                own = kept.get(name)
                own = own if isinstance(own, dict) else {}
                # Of a server that they weren't given for, blanks mean nothing.
                found[name] = {
                    key: own[key] if one == _BLANK else one
                    for key, one in value.items()
                    if one != _BLANK or key in own
                }
            elif name not in fields or value != _BLANK:
                found[name] = value
            elif name in kept:
                found[name] = kept[name]
        return found


def _told_for(member: Mapping[str, Any]) -> bytes:
    return orjson.dumps([member.get(name) for name in _TELLING])


def _blank(value: Any) -> Any:
    return dict.fromkeys(value, _BLANK) if isinstance(value, dict) else _BLANK


def _loaded(body: bytes, secrets: BodySecrets) -> tuple[dict[str, Any], bytes]:
    """A body's object as hooks see it, and how it reads as long as nobody changes it."""
    value = load_plain_json_object(body, load_integers)
    try:
        before = dump_integers(value)
    except TypeError as error:
        raise InvalidRequestError("The request body is nested too deep.") from error
    return secrets.blanked(value), before


def _dumped(body: dict[str, Any], secrets: BodySecrets) -> bytes:
    try:
        return dump_integers(secrets.restored(body) if isinstance(body, dict) else body)
    except TypeError as error:
        raise GatewayError("A hook of this server left something else than JSON.") from error
