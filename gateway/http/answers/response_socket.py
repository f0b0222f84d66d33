"""/v1/responses over a WebSocket: one response after another, and the last one remembered."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import orjson
from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import ClientDisconnectedError, GatewayError, InvalidRequestError
from gateway.http.access.guard import caller_of, key_id_of, tenant_of
from gateway.http.access.hooking import shown_to_hooks
from gateway.http.answers.answer_headers import ignored_headers
from gateway.http.answers.hosted_answering import hosted_turns
from gateway.http.answers.responses import Answering
from gateway.http.answers.socket_lanes import LaneEvents, LaneTurns, lane_of
from gateway.http.bodies.parsed_bodies import SocketBody
from gateway.http.bodies.parsers import CONTINUED_SOCKET, SOCKET
from gateway.http.connections.websocket import CloseCode, Upgrade, WebSocket
from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.openresponses.convert import AskedResponse
from gateway.http.openresponses.render import ToldEvent
from gateway.http.openresponses.stored_items import joined
from gateway.http.parts import parts_of
from gateway.http.response_turns.hosted_turns import HostedTurns
from gateway.http.response_turns.response_shape import ResponseShape, body_of
from gateway.http.response_turns.stored_turns import LocalTurn, ReadContext, StoredTurn, shortened
from gateway.http.response_turns.turn_makers import LongerModels
from gateway.request.jobs.job import RESPONSES_ENDPOINT
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from gateway.telemetry.access_log import AccessRecord
from gateway.telemetry.request_trace import RequestTraces
from protocol.wire.messages import Usage

MAX_OPEN_S: Final = 3600.0
"""As OpenAI's server does, so that clients know it: they connect again."""
SWITCHING: Final = 101
_logger = logging.getLogger("penstock.gateway.http")


class SocketAnswer(Response):
    """The answer to a handshake: everything that is said on the connection from then on.

    Args:
        request: Of the handshake.
        upgrade: Of the connection.
    """

    def __init__(self, request: HttpRequest, upgrade: Upgrade) -> None:
        super().__init__(status_code=SWITCHING)
        self._request = request
        self._upgrade = upgrade

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Talk until one side ends it."""
        state = self._request.state
        record: AccessRecord = state.log
        record.route, record.status = RESPONSES_ENDPOINT, SWITCHING
        parts = parts_of(self._request)
        parts.metrics.on_http_answer(RESPONSES_ENDPOINT, SWITCHING)
        headers = {
            b"x-request-id": (state.trace_id or state.request_id).encode("ascii"),
            b"x-penstock-request-id": state.request_id.encode("ascii"),
        }
        buffer = parts.bodies.sockets.open(caller_of(self._request).name)
        socket = self._upgrade.accept(headers, parts.settings.max_body_bytes, buffer)
        try:
            await ResponseSocket(self._request, socket, parts.clock).talk()
        except ClientDisconnectedError:
            pass
        except Exception:
            _logger.exception("request %s: a WebSocket failed", state.request_id)
            socket.close(CloseCode.INTERNAL_ERROR, "Internal server error.")
        finally:
            socket.close(CloseCode.GOING_AWAY)


class ResponseSocket:
    """What is said on one WebSocket.

    Args:
        request: Of the handshake.
        socket: Open.
        clock: Monotonic seconds.
    """

    def __init__(self, request: HttpRequest, socket: WebSocket, clock: Callable[[], float]) -> None:
        self._request = request
        self._socket = socket
        self._clock = clock
        self._parts = parts_of(request)
        settings = self._parts.settings
        self._traces = RequestTraces(settings.trace_ratio, settings.trace_clients)
        self._last = LaneTurns(
            settings.store_max_context_bytes,
            self._parts.bodies.remembered,
            caller_of(request).name,
        )
        self._num_turns = 0

    async def talk(self) -> None:
        """Answer one message after another until the client leaves, or for an hour."""
        try:
            async with asyncio.timeout(MAX_OPEN_S) as limit:
                while (message := await self._socket.receive()) is not None:
                    if self._parts.requests.is_draining:
                        self._socket.close(CloseCode.GOING_AWAY, "This server is shutting down.")
                        return
                    due = limit.when()
                    limit.reschedule(None)  # a response is not cut off by it
                    await self._answer(message)
                    limit.reschedule(due)
        except TimeoutError:
            await self._refuse(
                InvalidRequestError(
                    f"A connection is open for {MAX_OPEN_S / 60:g} minutes at most; connect again."
                ),
                code="websocket_connection_limit_reached",
            )
            self._socket.close(CloseCode.GOING_AWAY, "Connect again.")
        finally:
            self._last.close()

    async def _answer(self, message: bytes) -> None:
        """One message of the client; whatever is wrong with it, the connection goes on."""
        self._num_turns += 1
        state = self._request.state
        turn_id = f"{state.request_id}x{self._num_turns}"
        record = AccessRecord(
            turn_id,
            state.trace_id,
            "WEBSOCKET",
            self._clock(),
            address=state.log.address,
            route=RESPONSES_ENDPOINT,
            status=200,
        )
        previous: str | None = None
        lane: str | None = None
        # Of its own, however long the connection is open.
        trace = self._traces.begin(self._request.scope["headers"])
        caller = replace(caller_of(self._request), trace=None if trace is None else trace.context)
        state.caller = caller
        try:
            identify = partial(key_id_of, self._request, RESPONSES_ENDPOINT)
            bodies = self._parts.bodies
            with bodies.place(caller.name) as place:
                await bodies.hold(message, place)
                self._socket.let_go()
                if self._parts.hooks:
                    message = await shown_to_hooks(
                        self._parts.hooks, message, self._request, caller, record, identify
                    )
                body = await bodies.parse(message, caller.name, SOCKET)
            lane = body.stream_id
            if body.type == "response.processed":
                return  # Codex says so; nothing follows from it
            if body.type == "response.steer":
                await self._socket.send(_not_steered(body))
                return
            if body.type != "response.create":
                raise InvalidRequestError(
                    f"Invalid `type`: `{body.type[:100]}` is not known; say `response.create`.",
                    param="type",
                )
            asked = body.response()
            previous = asked.refs.previous_id
            await self._respond(message, body, asked, turn_id, record)
        except ClientDisconnectedError:
            raise
        except GatewayError as error:
            await self._end_turn(error, previous, _lane(lane, message), record)
        except Exception:
            # A bug that one message has met is nothing to the next one.
            _logger.exception("request %s: a message of a WebSocket failed", turn_id)
            bug = GatewayError("Internal server error.")
            await self._end_turn(bug, previous, _lane(lane, message), record)
        finally:
            now = self._clock()
            self._parts.access_log.write(record, now)
            if trace is not None:
                trace.tell(record, now)

    async def _end_turn(
        self, error: GatewayError, previous: str | None, lane: str, record: AccessRecord
    ) -> None:
        """Tell of what a message has failed with."""
        record.error_code, record.status = str(error.code), ERROR_TABLE[error.code].status
        self._last.forget(previous)  # as OpenAI's does: it isn't continued from there again
        await self._refuse(error, lane=lane)

    async def _respond(
        self,
        message: bytes,
        body: SocketBody,
        asked: AskedResponse,
        turn_id: str,
        record: AccessRecord,
    ) -> None:
        local = self._last.find(asked.refs.previous_id)
        turn = StoredTurn(self._parts.store, f"resp_{turn_id}", local=local)
        context, lane = ReadContext(message, b"[]", {}), body.stream_id
        try:
            if not asked.refs.is_empty:
                # Who calls may have changed since the handshake.
                self._request.state.granted = None
                turn.tenant = await tenant_of(self._request, RESPONSES_ENDPOINT)
                context = await turn.read(message, asked.refs)
                asked = await self._reparsed(context.frame())
            ignored_headers(body_of(asked).ignored, strict=self._parts.settings.strict_fields)
            if not body.generates:
                self._last.remember(lane, await self._prepare_only(asked, turn, context, lane))
            else:
                turn.check(asked)
                self._last.remember(lane, await self._generate(asked, turn, context, lane, record))
        finally:
            turn.close()

    async def _generate(
        self,
        asked: AskedResponse,
        turn: StoredTurn,
        context: ReadContext,
        lane: str,
        record: AccessRecord,
    ) -> LocalTurn | None:
        requests = self._parts.requests
        models = LongerModels(requests, asked.model)
        while True:
            body = body_of(asked)
            model = models.chosen or requests.model_of(body.job)
            try:
                output = await self._make(asked, turn, context, lane, record, model)
            except GatewayError as failure:
                error = models.told(failure)
                if body.hosted.takes_turns or not models.take(error, model):
                    asked = await shortened(asked, context, error, self._reparsed)
            else:
                break
        if output is None:
            self._last.forget(asked.refs.previous_id)
            return None
        return self._kept(turn, asked, context, output)

    async def _make(
        self,
        asked: AskedResponse,
        turn: StoredTurn,
        context: ReadContext,
        lane: str,
        record: AccessRecord,
        model: str,
    ) -> bytes | None:
        """Generate and tell; the output, or None when it failed after it had begun.

        Turns of a response that takes several choose their models themselves.

        Raises:
            GatewayError: It failed before anything of it was told.
        """
        request: Request | HostedTurns
        work: GenerationWork | HostedTurns
        if body_of(asked).hosted.takes_turns:
            self._request.state.granted = None
            turn.tenant = await tenant_of(self._request, RESPONSES_ENDPOINT)
            request = work = hosted_turns(
                self._request, asked, turn, context, record.request_id, self._reparsed
            )
            shape = ResponseShape(asked, turn, self._parts.wall_clock, request.tools)
        else:
            request, work = self._parts.requests.generation(
                body_of(asked).job, caller_of(self._request), record.request_id, model=model
            )
            shape = ResponseShape(asked, turn, self._parts.wall_clock)
        self._socket.on_lost(request.on_client_gone)
        try:
            await request.start()
            # Who waits for an event, and for long, hears that the response is in progress.
            silence_s = self._parts.settings.ping_interval_s
            found = await work.next_events(silence_s)
            events = shape.events(request)
            frames = LaneEvents(lane, [*body_of(asked).ignored, *work.unread])
            try:
                while found is not None:
                    frames.note(work.unenforced)
                    await self._tell(events.render(found) if found else events.silence(), frames)
                    found = await work.next_events(silence_s)
                last = events.finish(work.usage())
                await shape.keep(request)
                output = None if events.final is None else events.final.output
            except ClientDisconnectedError:
                raise
            except GatewayError as error:
                record.error_code = str(error.code)
                last, output = events.fail(error), None
                if request.keeps_failure:
                    with contextlib.suppress(GatewayError):
                        await shape.keep(request)
            await self._tell(last, frames)
            return output
        finally:
            self._socket.on_lost(None)
            request.end("aborted")
            self._note(record, request)

    def _note(self, record: AccessRecord, request: Answering) -> None:
        usage = request.usage()
        if request.identity is not None:
            record.key_id = request.identity.key_id
        record.model, record.outcome = request.model, request.outcome or ""
        record.first_output_s = request.first_output_s
        record.prompt_tokens = usage.prompt_tokens
        record.completion_tokens = usage.completion_tokens
        record.cached_tokens = usage.cached_tokens
        request.release()

    async def _prepare_only(
        self, asked: AskedResponse, turn: StoredTurn, context: ReadContext, lane: str
    ) -> LocalTurn:
        """`generate: false`: the input is remembered, and an empty response names it.

        Raises:
            InvalidRequestError: It has become more than is remembered.
        """
        items = joined((context.items, asked.input_json.encode()))
        max_bytes = self._parts.settings.store_max_context_bytes
        if len(items) > max_bytes:
            raise InvalidRequestError(
                f"Invalid `input`: with what it goes on from it has {len(items)} bytes, and"
                f" {max_bytes} are remembered (PENSTOCK_STORE_MAX_CONTEXT_BYTES); compact it or"
                " begin again.",
                param="input",
            )
        shape = ResponseShape(asked, turn, self._parts.wall_clock)
        events = shape.prepared(turn.response_id)
        frames = LaneEvents(lane, body_of(asked).ignored)
        await self._tell(events.render([]), frames)
        await self._tell(events.finish(Usage()), frames)
        return LocalTurn(turn.response_id, items, is_stored=False)

    def _kept(
        self, turn: StoredTurn, asked: AskedResponse, context: ReadContext, output: bytes
    ) -> LocalTurn | None:
        """What the next response may go on from, unless it has become too much."""
        items = joined((context.items, asked.input_json.encode(), output))
        is_small = len(items) <= self._parts.settings.store_max_context_bytes
        is_free = asked.refs.conversation_id is None
        return (
            LocalTurn(turn.response_id, items, is_stored=asked.is_stored)
            if is_small and is_free
            else None
        )

    async def _reparsed(self, frame: bytes) -> AskedResponse:
        body = await self._parts.bodies.parse(
            frame, caller_of(self._request).name, CONTINUED_SOCKET
        )
        return body.response()

    async def _tell(self, events: list[ToldEvent], frames: LaneEvents) -> None:
        for event in events:
            await self._socket.send(frames.frame(event.body))

    async def _refuse(self, error: GatewayError, code: str = "", lane: str = "") -> None:
        row = ERROR_TABLE[error.code]
        told = {
            "type": row.type,
            "code": code or row.code,
            "message": error.message,
            "param": error.param,
        }
        body = orjson.dumps({"type": "error", "status": row.status, "error": told})
        await self._socket.send(LaneEvents(lane).frame(body))


def _lane(known: str | None, message: bytes) -> str:
    return lane_of(message) if known is None else known


def _not_steered(body: SocketBody) -> bytes:
    """The answer to who wants to add to a response that is being made."""
    told = {
        "type": "response.steer.failed",
        "sequence_number": 0,
        "error": {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "Models here read no more of a response that is being made; say it in the"
            " next `response.create`.",
        },
        "steer": orjson.Fragment(body.steer_json),
    }
    return orjson.dumps(told)
