"""Keys: created, listed and revoked by administrators; a key is shown once and never stored."""

import hashlib
import secrets
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access import GuardedRoute, read_body
from gateway.http.parts import parts_of
from gateway.http.schemas.body import load_json_object, unknown_keys, validate
from gateway.http.schemas.keys import CreateKeyRequest
from protocol.wire.messages import KeyRecord

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

KEY_PREFIX = "psk-"
_KEY_BYTES = 32
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_DIGITS = 9


_CREATE_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/CreateKeyRequest"}}
        },
    }
}


@router.post("/v1/admin/keys", openapi_extra=_CREATE_SCHEMA)
async def create_key(request: Request) -> Response:
    """Make a key; the answer is the only place where it is ever shown."""
    value = load_json_object(await read_body(request))
    body = validate(CreateKeyRequest, value)
    unknown = unknown_keys(value, CreateKeyRequest.known_fields)
    if unknown:
        # A misspelt limit would make a key without it.
        raise InvalidRequestError(f"Unknown field: `{unknown[0]}`.", param=unknown[0])
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    answer = await parts_of(request).auth.keys(
        bridge.create_key(
            request.state.request_id,
            key_digest=hashlib.sha256(key.encode()).digest(),
            hint=f"{key[:6]}…{key[-4:]}",
            name=body.name,
            role=body.role,
            tenant=body.tenant,
            requests_per_minute=body.requests_per_minute,
            tokens_per_minute=body.tokens_per_minute,
            expires_at=body.expires_at,
            actor_key_id=request.state.granted.key_id,
        )
    )
    parts_of(request).identities.clear()
    return _json({**_record(answer.records[0]), "key": key}, status=201)


@router.get("/v1/admin/keys")
async def list_keys(request: Request) -> Response:
    """A page of keys, newest first; `after` is the last id of the page before."""
    limit_text = request.query_params.get("limit", str(_DEFAULT_PAGE))
    # No int() of a client's text of any length.
    is_number = limit_text.isascii() and limit_text.isdecimal() and len(limit_text) <= _MAX_DIGITS
    if not is_number or not 1 <= int(limit_text) <= _MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {_MAX_PAGE}.", param="limit")
    answer = await parts_of(request).auth.keys(
        bridge.list_keys(
            request.state.request_id, request.query_params.get("after", ""), int(limit_text)
        )
    )
    data = [_record(record) for record in answer.records]
    return _json({"object": "list", "data": data, "has_more": answer.has_more})


@router.delete("/v1/admin/keys/{key_id}/revoke")
async def revoke_key(request: Request, key_id: str) -> Response:
    """End a key at once and for good."""
    parts = parts_of(request)
    answer = await parts.auth.keys(
        bridge.revoke_key(request.state.request_id, key_id, request.state.granted.key_id)
    )
    parts.identities.clear()
    return _json(_record(answer.records[0]))


def _record(record: KeyRecord) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in KeyRecord.__struct_fields__}
    return {"object": "key", "id": fields.pop("key_id"), **fields}


def _json(value: dict[str, Any], status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(value), status, headers, "application/json")
