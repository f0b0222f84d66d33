"""/v1/conversations: lists of items that responses go on from and add to."""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import UnsupportedFieldError
from gateway.http.access.guard import GuardedRoute, parsed_body, tenant_of
from gateway.http.access.replaying import made_id
from gateway.http.answers.answer_headers import ignored_headers
from gateway.http.answers.responses import json_answer
from gateway.http.bodies.parsed_bodies import (
    ConversationBody,
)
from gateway.http.bodies.parsers import (
    CONVERSATION,
    CONVERSATION_ITEMS,
    CONVERSATION_UPDATE,
)
from gateway.http.openresponses.convert import NO_STORE
from gateway.http.openresponses.schemas import (
    ConversationItemsRequest,
    ConversationRequest,
    ConversationUpdateRequest,
)
from gateway.http.openresponses.stored_items import base_of, with_ids
from gateway.http.parts import parts_of
from gateway.http.query import id_of_path, list_query
from gateway.http.response_turns.stored_turns import off_loop
from gateway.http.routes.inference.responses import page_object
from gateway.http.schemas.base.body import body_schema
from gateway.json_numbers import loads
from gateway.storage.records import Conversation, ConversationItem
from gateway.storage.store import ConversationStore

router = APIRouter(route_class=GuardedRoute, tags=["conversations"])

_ALL: Final = "/v1/conversations"
_ONE: Final = f"{_ALL}/{{conversation_id}}"
_ITEMS: Final = f"{_ONE}/items"
_ITEM: Final = f"{_ITEMS}/{{item_id}}"


@router.post(_ALL, openapi_extra=body_schema(ConversationRequest, is_required=False))
async def create_conversation(request: Request) -> Response:
    """Begin a conversation."""
    tenant, store = await _store_of(request)
    body = await parsed_body(request, CONVERSATION)
    headers = _headers(request, body)
    parts, own = parts_of(request), made_id(request)
    created_ms = int(parts.wall_clock()) * 1000
    wanted = Conversation(f"conv_{own}", created_ms, body.metadata_json.encode())
    made = await store.create(tenant, wanted, await _items(body, wanted.id, own))
    return json_answer(_shown(made), headers)


@router.get(_ONE)
async def retrieve_conversation(request: Request, conversation_id: str) -> Response:
    """A conversation without its items."""
    tenant, store = await _store_of(request)
    return json_answer(_shown(await store.find(tenant, _id(conversation_id))))


@router.post(_ONE, openapi_extra=body_schema(ConversationUpdateRequest))
async def update_conversation(request: Request, conversation_id: str) -> Response:
    """Replace its metadata."""
    tenant, store = await _store_of(request)
    body = await parsed_body(request, CONVERSATION_UPDATE)
    headers = _headers(request, body)
    found = await store.set_metadata(tenant, _id(conversation_id), body.metadata_json.encode())
    return json_answer(_shown(found), headers)


@router.delete(_ONE)
async def delete_conversation(request: Request, conversation_id: str) -> Response:
    """Forget a conversation and its items; the responses that were made in it stay."""
    tenant, store = await _store_of(request)
    await store.remove(tenant, _id(conversation_id))
    return json_answer({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post(_ITEMS, openapi_extra=body_schema(ConversationItemsRequest))
async def add_items(request: Request, conversation_id: str) -> Response:
    """Add items behind all others."""
    tenant, store = await _store_of(request)
    body = await parsed_body(request, CONVERSATION_ITEMS)
    headers = _headers(request, body)
    items = await _items(body, _id(conversation_id), made_id(request))
    kept = await store.append(tenant, conversation_id, items)
    return json_answer(_page(kept, has_more=False), headers)


@router.get(_ITEMS)
async def list_items(request: Request, conversation_id: str) -> Response:
    """Some items."""
    tenant, store = await _store_of(request)
    query = list_query(request)
    page = await store.page(
        tenant,
        _id(conversation_id),
        query.after,
        query.limit,
        is_ascending=query.is_ascending,
    )
    return json_answer(_page(page.items, has_more=page.has_more))


@router.get(_ITEM)
async def retrieve_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """One item."""
    tenant, store = await _store_of(request)
    found = await store.item(tenant, _id(conversation_id), id_of_path("item", item_id))
    return Response(found.body, media_type="application/json")


@router.delete(_ITEM)
async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
    """Drop one item; answers the conversation."""
    tenant, store = await _store_of(request)
    found = await store.remove_item(tenant, _id(conversation_id), id_of_path("item", item_id))
    return json_answer(_shown(found))


def _id(conversation_id: str) -> str:
    return id_of_path("conversation", conversation_id)


async def _items(
    body: ConversationBody, conversation_id: str, request_id: str
) -> list[ConversationItem]:
    base = f"{base_of(conversation_id)}_{request_id}"
    items = await off_loop(len(body.items_json), lambda: loads(body.items_json))
    return [ConversationItem(one["id"], orjson.dumps(one)) for one in with_ids(items, base)]


def _page(items: Sequence[ConversationItem], *, has_more: bool) -> dict[str, Any]:
    bodies = [orjson.Fragment(item.body) for item in items]
    return page_object(bodies, [item.id for item in items], has_more=has_more)


def _shown(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_ms // 1000,
        "metadata": orjson.Fragment(conversation.metadata),
    }


def _headers(request: Request, body: ConversationBody) -> dict[str, str]:
    return ignored_headers(body.ignored, strict=parts_of(request).settings.strict_fields)


async def _store_of(request: Request) -> tuple[str, ConversationStore]:
    """Whose conversations a request may see, and where they are.

    Raises:
        UnsupportedFieldError: Nothing is stored here.
    """
    store = parts_of(request).store
    if store is None:
        raise UnsupportedFieldError(f"There are no conversations: {NO_STORE}.")
    return await tenant_of(request, request.scope["route"].path), store.conversations
