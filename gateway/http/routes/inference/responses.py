"""/v1/responses and the routes below it: OpenAI's newer API."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import (
    ClientDisconnectedError,
    GatewayError,
    InvalidRequestError,
    StoredNotFoundError,
    UnsupportedFieldError,
)
from gateway.http.access.guard import (
    GuardedRoute,
    body_and_parsed,
    caller_of,
    check_still_allowed,
    parsed,
    tenant_of,
)
from gateway.http.access.replaying import made_id, refuse_stream
from gateway.http.answers.answer_headers import ignored_headers
from gateway.http.answers.answering import UnstoredShape, answer, check_model, count_tokens
from gateway.http.answers.hosted_answering import answer_hosted
from gateway.http.answers.response_socket import SocketAnswer
from gateway.http.answers.responses import json_answer
from gateway.http.background.background_responses import BackgroundResponses
from gateway.http.background.background_task import BackgroundTask, begun, cancelled, encoded
from gateway.http.background.event_log import STREAM_HEADERS, EventLogResponse
from gateway.http.bodies.parsers import (
    COMPACT,
    CONTINUED_COMPACT,
    CONTINUED_INPUT_TOKENS,
    CONTINUED_RESPONSES,
    INPUT_TOKENS,
    RESPONSES,
)
from gateway.http.connections.websocket import EXTENSION as WEBSOCKET
from gateway.http.connections.websocket import Upgrade
from gateway.http.errors.error_table import UPGRADE_REQUIRED, error_body
from gateway.http.openresponses.convert import NO_STORE, AskedResponse, CompactBody
from gateway.http.openresponses.render import DONE
from gateway.http.openresponses.schemas import (
    CompactRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from gateway.http.openresponses.summary import SummaryCollector
from gateway.http.parts import parts_of
from gateway.http.query import id_of_path, list_query, query_flag, query_number
from gateway.http.response_turns.response_shape import ResponseShape, body_of
from gateway.http.response_turns.stored_turns import (
    ReadContext,
    StoredTurn,
    as_stored,
    shortened,
    shown_input,
    told_again,
)
from gateway.http.response_turns.tool_asking import EXECUTE_ENDPOINT
from gateway.http.schemas.base.body import body_schema
from gateway.request.jobs.job import COMPACT_ENDPOINT, RESPONSES_ENDPOINT, GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from gateway.storage.records import StoredResponse
from gateway.storage.store import Store

router = APIRouter(route_class=GuardedRoute, tags=["responses"])

_COUNT: Final = f"{RESPONSES_ENDPOINT}/input_tokens"
_ONE: Final = f"{RESPONSES_ENDPOINT}/{{response_id}}"


@router.post(RESPONSES_ENDPOINT, openapi_extra=body_schema(ResponsesRequest))
async def create_response(request: HttpRequest) -> Response:
    """Answer items."""
    parts = parts_of(request)
    body, asked = await body_and_parsed(request, RESPONSES)
    own = made_id(request)
    turn = StoredTurn(parts.store, f"resp_{own}")
    context = ReadContext(body, b"[]", {})
    try:
        if not asked.refs.is_empty or asked.in_background or own != request.state.request_id:
            turn.tenant = await tenant_of(request, RESPONSES_ENDPOINT)
        if own != request.state.request_id and turn.tenant is not None:
            made = await _made_before(parts.store, turn.tenant, turn.response_id)
            if made is not None:
                return Response(made.body, media_type="application/json")
        if not asked.refs.is_empty:
            check_model(request, asked.model)
            context = await turn.read(body, asked.refs)
            asked = await parsed(request, context.frame(), CONTINUED_RESPONSES)
        turn.check(asked)
        if asked.in_background:
            return await _enqueue(request, asked, turn, context)
        return await _answer(request, asked, turn, context)
    except BaseException:
        turn.close()
        raise


@router.get(RESPONSES_ENDPOINT)
async def open_socket(request: HttpRequest) -> Response:
    """Answer items one response after another, over a WebSocket."""
    upgrade: Upgrade | None = request.scope.get("extensions", {}).get(WEBSOCKET)
    if upgrade is None:
        body = error_body("This is a WebSocket: ask for an upgrade, or use POST.", UPGRADE_REQUIRED)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        return Response(body, UPGRADE_REQUIRED.status, headers, "application/json")
    return SocketAnswer(request, upgrade)


async def _made_before(store: Store | None, tenant: str, response_id: str) -> StoredResponse | None:
    """What a gateway queued or stored that died before it had answered its request."""
    if store is None:
        return None
    try:
        return await store.responses.find(tenant, response_id)
    except StoredNotFoundError:
        return None


async def _answer(
    request: HttpRequest, asked: AskedResponse, turn: StoredTurn, context: ReadContext
) -> Response:
    """Answer while the client waits; without the oldest items where it allows that."""
    if body_of(asked).hosted.takes_turns:
        return await answer_hosted(request, asked, turn, context)
    while True:
        shape = ResponseShape(asked, turn, parts_of(request).wall_clock)
        try:
            return await answer(request, body_of(asked), shape)
        except GatewayError as error:
            asked = await shortened(
                asked,
                context,
                error,
                lambda frame: parsed(request, frame, CONTINUED_RESPONSES),
            )


async def _enqueue(
    request: HttpRequest, asked: AskedResponse, turn: StoredTurn, context: ReadContext
) -> Response:
    """Queue a response and answer at once, or tell it as it is made."""
    parts, background = parts_of(request), _background_of(request)
    check_model(request, asked.model)
    if asked.is_streaming:
        refuse_stream(request)
    body, created, tenant = body_of(asked), int(parts.wall_clock()), turn.tenant
    assert tenant is not None, "it was asked for"
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    caller = caller_of(request)
    if caller.token:
        raise UnsupportedFieldError(
            "`background` needs an API key: a token is kept nowhere, and may have expired when the"
            " response is made.",
            param="background",
        )
    for path, named in body.hosted.servers:
        try:
            parts.tool_servers.find(named, path)
        except InvalidRequestError:
            # Who may not use tools isn't told which servers there are.
            await tenant_of(request, EXECUTE_ENDPOINT)
            raise
    task = BackgroundTask(
        asked,
        caller.key_digest,
        caller.address,
        caller.trace_id,
        caller.end_user,
        created,
        context if asked.truncates or body.hosted.takes_turns else None,
        "" if caller.trace is None else caller.trace.traceparent(),
    )
    queued, events = begun(turn.response_id, asked, created, parts.wall_clock)
    response = as_stored(turn.response_id, asked, created, queued)
    await background.store.jobs.enqueue(tenant, response, encoded(task), events)
    turn.hand_over()
    background.look()
    if asked.is_streaming:
        return EventLogResponse(
            background,
            tenant,
            turn.response_id,
            judge=partial(check_still_allowed, request, tenant),
            after=-1,
            ping_interval_s=parts.settings.ping_interval_s,
            headers=headers,
        )
    return Response(queued.body, headers=headers, media_type="application/json")


@router.post(_COUNT, openapi_extra=body_schema(InputTokensRequest))
async def count_input_tokens(http_request: HttpRequest) -> Response:
    """The tokens of items, as the model would read them."""
    body, asked = await body_and_parsed(http_request, INPUT_TOKENS)
    if asked.body is None:
        tenant = await tenant_of(http_request, _COUNT)
        turn = StoredTurn(parts_of(http_request).store, "", tenant)
        context = await turn.read(body, asked.refs, holds=False)
        asked = await parsed(http_request, context.frame(), CONTINUED_INPUT_TOKENS)
    assert asked.body is not None, "what it names was read"
    try:
        counted = await count_tokens(http_request, _COUNT, asked.body)
    except ClientDisconnectedError:
        return Response(status_code=499)
    content = orjson.dumps({"object": "response.input_tokens", "input_tokens": counted.number})
    return Response(content, headers=counted.headers, media_type="application/json")


@router.post(COMPACT_ENDPOINT, openapi_extra=body_schema(CompactRequest))
async def compact_response(request: HttpRequest) -> Response:
    """Items that say in fewer tokens what was said before."""
    body, asked = await body_and_parsed(request, COMPACT)
    if asked.job is None:
        tenant = await tenant_of(request, COMPACT_ENDPOINT)
        turn = StoredTurn(parts_of(request).store, "", tenant)
        context = await turn.read(body, asked.refs, holds=False)
        asked = await parsed(request, context.frame(), CONTINUED_COMPACT)
    return await answer(request, _Compaction(asked), _CompactShape(request, asked))


@dataclass(frozen=True, slots=True)
class _Compaction:
    """The chat of a compaction (`AskedGeneration`)."""

    asked: CompactBody

    @property
    def job(self) -> GenerationJob:
        """That makes the summary."""
        assert self.asked.job is not None, "what it names was read"
        return self.asked.job

    @property
    def ignored(self) -> list[str]:
        """Fields without a meaning here."""
        return self.asked.ignored


class _CompactShape(UnstoredShape):
    """Answers of a compaction."""

    def __init__(self, request: HttpRequest, asked: CompactBody) -> None:
        self._asked = asked
        self._created = int(parts_of(request).wall_clock())

    def collector(self, request: Request, work: GenerationWork) -> SummaryCollector:
        """For the summary."""
        asked = self._asked
        return SummaryCollector(
            request.request_id, self._created, asked.kept_json, asked.carried_json
        )

    def renderer(self, request: Request, work: GenerationWork) -> Any:
        """There are no streams of it."""
        raise NotImplementedError


# What is stored.


@router.get(_ONE)
async def retrieve_response(request: HttpRequest, response_id: str) -> Response:
    """A response; with `stream=true` its events, from `starting_after` on."""
    tenant, store = await _stored(request)
    response = await store.responses.find(tenant, id_of_path("response", response_id))
    if not query_flag(request, "stream"):
        return Response(response.body, media_type="application/json")
    number = query_number(request, "starting_after")
    after = -1 if number is None else number
    if request.method == "HEAD":  # nobody reads an event, so they may still be taken back
        head = Response(headers=STREAM_HEADERS, media_type="text/event-stream")
        del head.headers["content-length"]
        return head
    pieces, _ = await store.jobs.events_after(tenant, response_id, -1)
    if pieces:
        return EventLogResponse(
            _background_of(request),
            tenant,
            response_id,
            judge=partial(check_still_allowed, request, tenant),
            after=after,
            ping_interval_s=parts_of(request).settings.ping_interval_s,
            headers={},
        )
    script = await store.responses.script(tenant, response_id)
    told = b"".join(event.as_sse() for event in await told_again(response, after, script))
    return Response(told + DONE, headers=STREAM_HEADERS, media_type="text/event-stream")


@router.delete(_ONE)
async def delete_response(request: HttpRequest, response_id: str) -> Response:
    """Forget a response; one that is being made ends."""
    tenant, store = await _stored(request)
    await store.responses.remove(tenant, id_of_path("response", response_id))
    _background_of(request).drop(response_id)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


@router.post(f"{_ONE}/cancel")
async def cancel_response(request: HttpRequest, response_id: str) -> Response:
    """End a response that is made in the background."""
    tenant, store = await _stored(request)
    background = _background_of(request)
    response = await store.jobs.cancel(tenant, id_of_path("response", response_id), cancelled)
    background.drop(response_id)
    if await background.until_left(response_id):  # by then it says what was spent
        response = await store.responses.find(tenant, response_id)
    return Response(response.body, media_type="application/json")


@router.get(f"{_ONE}/input_items")
async def list_input_items(request: HttpRequest, response_id: str) -> Response:
    """The items that a response was asked with."""
    tenant, store = await _stored(request)
    query = list_query(request)
    response = await store.responses.find(tenant, id_of_path("response", response_id))
    items = await shown_input(response)
    if not query.is_ascending:
        items.reverse()
    if query.after:
        ids = [item["id"] for item in items]
        if query.after not in ids:
            raise StoredNotFoundError("item", query.after, param="after")
        items = items[ids.index(query.after) + 1 :]
    shown = items[: query.limit]
    ids = [item["id"] for item in shown]
    return json_answer(page_object(shown, ids, has_more=len(items) > query.limit))


def page_object(items: Sequence[Any], ids: Sequence[str], *, has_more: bool) -> dict[str, Any]:
    """A page of items.

    Args:
        items: Of the page, for `orjson`.
        ids: Theirs.
        has_more: Whether more follow.
    """
    return {
        "object": "list",
        "data": items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }


async def _stored(request: HttpRequest) -> tuple[str, Store]:
    """Whose things a request may see, and where they are.

    Raises:
        UnsupportedFieldError: Nothing is stored here.
    """
    store = parts_of(request).store
    if store is None:
        raise UnsupportedFieldError(f"There are no stored responses: {NO_STORE}.")
    return await tenant_of(request, request.scope["route"].path), store


def _background_of(request: HttpRequest) -> BackgroundResponses:
    background = parts_of(request).background
    if background is None:
        raise InvalidRequestError(f"Nothing runs in the background: {NO_STORE}.")
    return background
