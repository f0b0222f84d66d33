"""Shows requests for output to the hooks of other packages, before their bodies are parsed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import Request

from gateway.errors import GatewayError, InvalidRequestError
from gateway.hooks.hook import HookRequest
from gateway.http.parsers import (
    CHAT,
    COMPACT,
    COMPLETION,
    CONVERSATION,
    CONVERSATION_ITEMS,
    MESSAGES,
    RESPONSES,
    SOCKET,
    BodyKind,
)
from gateway.http.parts import parts_of
from gateway.http.schemas.body import load_json_object
from gateway.request.caller import Caller
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


async def shown_to_hooks(
    kind: BodyKind[Any],
    body: bytes,
    request: Request,
    caller: Caller,
    record: AccessRecord,
    identify: Callable[[], Awaitable[str]],
) -> bytes:
    """A body as the hooks leave it; the very bytes, where they change nothing.

    Args:
        kind: Of the body.
        body: As it came.
        request: That it came with.
        caller: Who sent it.
        record: Its line of the access log, which takes the hooks' tags.
        identify: Says whose key it is.

    Raises:
        RefusedByHookError: One refuses it.
        InvalidRequestError: It is no JSON object, or nested too deep.
        DeniedError: The key has ended meanwhile.
        GatewayError: A hook failed.
    """
    parts = parts_of(request)
    if not parts.hooks or kind.name not in SHOWN:
        return body
    value, before = await asyncio.to_thread(_loaded, body)
    shown = HookRequest(
        request_id=record.request_id,
        endpoint=request.scope["route"].path,
        key_id=await identify(),
        address=caller.address,
        headers=told_headers(request.headers),
        body=value,
    )
    try:
        await parts.hooks.refine(shown)
    finally:
        record.tags.update(shown.tags)
    after = await asyncio.to_thread(_dumped, shown.body)
    return body if after == before else after


def told_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """All headers but those that prove who somebody is."""
    return {name: value for name, value in headers.items() if name not in _KEPT_BACK}


def _loaded(body: bytes) -> tuple[dict[str, Any], bytes]:
    """A body's object, and how it reads as long as nobody changes it."""
    value = load_json_object(body)
    try:
        return value, orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError("The request body is nested too deep.") from error


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise GatewayError("A hook of this server left something else than JSON.") from error
