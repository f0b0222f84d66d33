"""Keys, as administrators make, change and end them; a key is shown once and never stored."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

import orjson
from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute, caller_of, read_body
from gateway.http.parts import parts_of
from gateway.http.query import check_query, page_size, query_text
from gateway.http.schemas.administration.keys import (
    ChangeKeyRequest,
    CreateKeyRequest,
    RotateKeyRequest,
)
from gateway.http.schemas.base.body import RequestModel, body_schema, known_only, load_json_object
from gateway.workers.auth import AdminQuestion
from protocol.wire.messages import (
    Actor,
    KeyAction,
    KeyDetails,
    KeysCounted,
    KeySettings,
    KeysFound,
    KeyStatus,
    PrincipalRole,
)

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

KEY_PREFIX = "psk-"
_KEY_BYTES = 32
_KEYS = "/v1/admin/keys"
_KEY = f"{_KEYS}/{{key_id}}"

BodyT = TypeVar("BodyT", bound=RequestModel)
KeyBodyT = TypeVar("KeyBodyT", CreateKeyRequest, ChangeKeyRequest)


@router.post(_KEYS, openapi_extra=body_schema(CreateKeyRequest))
async def create_key(request: Request) -> Response:
    """Make a key; the answer is the only place where it is ever shown."""
    body = _of_served_models(request, await body_of(request, CreateKeyRequest))
    _, settings = body.settings()
    key, digest, hint = new_key_secret()
    made = await administer_keys(
        request,
        bridge.make_key(
            request.state.request_id,
            actor_of(request),
            key_digest=digest,
            hint=hint,
            settings=settings,
        ),
    )
    return admin_json({**_record(made.keys[0]), "key": key}, status=201)


@router.get(_KEYS)
async def list_keys(request: Request) -> Response:
    """A page of keys, newest first; `after` is the last id of the page before."""
    check_query(request, "role", "status", "owner", "tag", "user_id", "team_id", "after", "limit")
    question = bridge.find_keys(
        request.state.request_id,
        actor_of(request),
        role=query_text(request, "role", one_of=get_args(PrincipalRole)),
        status=query_text(request, "status", one_of=get_args(KeyStatus)),
        owner=query_text(request, "owner"),
        tag=query_text(request, "tag"),
        user_id=query_text(request, "user_id"),
        team_id=query_text(request, "team_id"),
        after_key_id=query_text(request, "after"),
        limit=page_size(request),
    )
    found = await parts_of(request).auth.administer(question, KeysFound)
    data = [_record(key) for key in found.keys]
    return admin_json({"object": "list", "data": data, "has_more": found.has_more})


# Before the route of one key, which would take `stats` for an id.
@router.get(f"{_KEYS}/stats")
async def count_keys(request: Request) -> Response:
    """How many keys of which kind there are, and how much they are used."""
    question = bridge.count_keys(request.state.request_id, actor_of(request))
    counted = await parts_of(request).auth.administer(question, KeysCounted)
    fields = {name: getattr(counted, name) for name in KeysCounted.__struct_fields__}
    del fields["request_id"]
    return admin_json({"object": "key.stats", **fields})


@router.get(_KEY)
async def get_key(request: Request, key_id: str) -> Response:
    """One key."""
    question = bridge.find_keys(request.state.request_id, actor_of(request), key_id=key_id)
    found = await parts_of(request).auth.administer(question, KeysFound)
    return admin_json(_record(found.keys[0]))


@router.patch(_KEY, openapi_extra=body_schema(ChangeKeyRequest))
async def change_key(request: Request, key_id: str) -> Response:
    """Change what is sent; null clears, what isn't sent stays, and the secret does, too."""
    body = _of_served_models(request, await body_of(request, ChangeKeyRequest))
    fields, settings = body.settings()
    if not fields:
        raise InvalidRequestError("The body names nothing to change.")
    question = bridge.update_key(
        request.state.request_id, actor_of(request), key_id, fields, settings
    )
    return admin_json(_record((await administer_keys(request, question)).keys[0]))


@router.post(f"{_KEY}/rotate", openapi_extra=body_schema(RotateKeyRequest, is_required=False))
async def rotate_key(request: Request, key_id: str) -> Response:
    """Give a key a new secret, shown here alone; the old one works for `overlap_s` more seconds."""
    overlap_s = (await body_of(request, RotateKeyRequest, is_required=False)).overlap_s
    key, digest, hint = new_key_secret()
    rotated = await administer_keys(
        request,
        bridge.rotate_key(
            request.state.request_id,
            actor_of(request),
            key_id,
            key_digest=digest,
            hint=hint,
            overlap_s=overlap_s,
        ),
    )
    return admin_json({**_record(rotated.keys[0]), "key": key})


@router.post(f"{_KEY}/suspend")
async def suspend_key(request: Request, key_id: str) -> Response:
    """End a key for the time being, at once."""
    return await _change_status(request, key_id, "suspend")


@router.post(f"{_KEY}/reactivate")
async def reactivate_key(request: Request, key_id: str) -> Response:
    """Let a suspended key work again."""
    return await _change_status(request, key_id, "reactivate")


@router.delete(f"{_KEY}/revoke")
async def revoke_key(request: Request, key_id: str) -> Response:
    """End a key at once and for good."""
    return await _change_status(request, key_id, "revoke")


@router.delete(_KEY)
async def delete_key(request: Request, key_id: str) -> Response:
    """Forget a key; what it used stays in the totals under its id, which names nobody."""
    await _change_status(request, key_id, "delete")
    return admin_json({"object": "key.deleted", "id": key_id, "deleted": True})


def actor_of(request: Request) -> Actor:
    """Who administers, as the guard found out."""
    caller = caller_of(request)
    return Actor(
        key_id=request.state.granted.key_id, address=caller.address, key_digest=caller.key_digest
    )


def admin_json(
    value: dict[str, Any], status: int = 200, more: Mapping[str, str] | None = None
) -> Response:
    """An answer that no cache keeps, with more headers."""
    headers = {"cache-control": "no-store", **(more or {})}
    return Response(orjson.dumps(value), status, headers, "application/json")


async def _change_status(request: Request, key_id: str, action: KeyAction) -> Response:
    question = bridge.change_key_status(request.state.request_id, actor_of(request), key_id, action)
    return admin_json(_record((await administer_keys(request, question)).keys[0]))


async def administer_keys(request: Request, question: AdminQuestion) -> KeysFound:
    """A change of keys; what this gateway knew of callers counts no more, whatever came of it."""
    parts = parts_of(request)
    try:
        return await parts.auth.administer(question, KeysFound)
    finally:
        parts.identities.clear()


async def body_of(request: Request, model: type[BodyT], *, is_required: bool = True) -> BodyT:
    """The checked body of an administrator's request.

    Raises:
        InvalidRequestError: It is wrong, or names a field that there isn't.
    """
    content = await read_body(request)
    value = load_json_object(content) if content or is_required else {}
    return known_only(model, value)  # a misspelt limit would make a key without it


def _of_served_models(request: Request, body: KeyBodyT) -> KeyBodyT:
    """The same body with the models that aliases stand for."""
    if body.allowed_models is None:
        return body
    served = list(parts_of(request).names.served_globs(body.allowed_models))
    return body.model_copy(update={"allowed_models": served})


def new_key_secret() -> tuple[str, bytes, str]:
    """A new key, its digest and its hint."""
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, hashlib.sha256(key.encode()).digest(), f"{key[:6]}…{key[-4:]}"


def _record(key: KeyDetails) -> dict[str, Any]:
    settings: dict[str, Any] = {
        name: getattr(key.settings, name) for name in KeySettings.__struct_fields__
    }
    fields = {
        name: getattr(key, name)
        for name in KeyDetails.__struct_fields__
        if name not in ("key_id", "settings", "tenant_id")
    }
    settings["tenant"] = key.tenant_id
    return {"object": "key", "id": key.key_id, **settings, **fields}
