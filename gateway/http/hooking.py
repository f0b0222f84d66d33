"""Shows requests for output to the hooks of other packages, before their bodies are parsed."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request

from gateway.errors import GatewayError
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
from gateway.http.parts import HttpParts
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
    parts: HttpParts,
    kind: BodyKind[Any],
    body: bytes,
    request: Request,
    caller: Caller,
    record: AccessRecord,
) -> bytes:
    """A body as the hooks leave it; the very bytes, where they change nothing.

    Raises:
        RefusedByHookError: One refuses it.
        InvalidRequestError: It is no JSON object.
        GatewayError: A hook failed.
    """
    if not parts.hooks or kind.name not in SHOWN:
        return body
    value = await asyncio.to_thread(load_json_object, body)
    before = await asyncio.to_thread(orjson.dumps, value)
    shown = HookRequest(
        request_id=record.request_id,
        endpoint=request.scope["route"].path,
        key_id=parts.identities.key_id(caller.key_digest),
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


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise GatewayError("A hook of this server left something else than JSON.") from error
