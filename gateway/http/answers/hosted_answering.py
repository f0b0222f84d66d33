"""Answers of Responses whose tools this server runs, to a client that waits for them."""

from fastapi import Request as HttpRequest
from fastapi import Response

from gateway.errors import ClientDisconnectedError, GatewayError, UnsupportedFieldError
from gateway.http.access.guard import caller_of, tenant_of
from gateway.http.access.replaying import refuse_stream
from gateway.http.answers.answer_headers import answer_headers, ignored_headers, unenforced_headers
from gateway.http.answers.responses import EventStreamResponse, collect_answer, note
from gateway.http.bodies.parsers import CONTINUED_RESPONSES
from gateway.http.connections.disconnect import watch
from gateway.http.openresponses.convert import AskedResponse
from gateway.http.parts import parts_of
from gateway.http.response_turns.hosted_turns import HostedTurns, Reparse
from gateway.http.response_turns.response_shape import ResponseShape, body_of
from gateway.http.response_turns.stored_turns import ReadContext, StoredTurn
from gateway.http.response_turns.turn_makers import LongerModels, PlainTurns
from gateway.request.jobs.job import RESPONSES_ENDPOINT
from gateway.telemetry.access_log import AccessRecord


def hosted_turns(
    http_request: HttpRequest,
    asked: AskedResponse,
    turn: StoredTurn,
    context: ReadContext,
    request_id: str,
    reparse: Reparse,
) -> HostedTurns:
    """The turns of a response whose client waits.

    Args:
        http_request: Of the client.
        asked: With its body.
        turn: Of the response.
        context: What it goes on from.
        request_id: Of its first turn.
        reparse: Parses a frame for this transport.
    """
    parts, caller = parts_of(http_request), caller_of(http_request)
    model = parts.names.choose(asked.model)
    return HostedTurns(
        asked,
        context,
        reparse,
        response_id=turn.response_id,
        servers=parts.tool_servers,
        requests=parts.requests,
        caller=caller,
        turns=PlainTurns(
            parts.requests, caller, request_id, LongerModels(parts.requests, asked.model), model
        ),
        max_calls=parts.settings.max_tool_calls,
        wall_clock=parts.wall_clock,
    )


async def answer_hosted(
    http_request: HttpRequest, asked: AskedResponse, turn: StoredTurn, context: ReadContext
) -> Response:
    """Run a response with its tools; its whole answer, or the stream that tells it.

    Raises:
        GatewayError: It failed before any tool was run.
    """
    parts, body = parts_of(http_request), body_of(asked)
    if body.job.options.is_streaming:
        refuse_stream(http_request)
    caller = caller_of(http_request)
    if caller.errand is not None:
        what, param = (
            ("Tools of type `mcp` are not run", "tools")
            if body.hosted.servers
            else ("Nothing is compacted", "context_management")
        )
        raise UnsupportedFieldError(
            f"{what} for lines of a batch; each is one request.", param=param
        )
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    # Which servers there are is nobody's business who may not use them.
    turn.tenant = await tenant_of(http_request, RESPONSES_ENDPOINT)
    turns = hosted_turns(
        http_request,
        asked,
        turn,
        context,
        http_request.state.request_id,
        lambda frame: parts.bodies.parse(frame, caller.name, CONTINUED_RESPONSES),
    )
    shape = ResponseShape(asked, turn, parts.wall_clock, turns.tools)
    record: AccessRecord = http_request.state.log
    stop = watch(http_request.scope, http_request.receive, turns.on_client_gone)
    is_handed_on = False
    try:
        await turns.start()
        headers |= ignored_headers([*body.ignored, *turns.unread], strict=False)
        headers |= answer_headers(
            turns, model=turns.model, asked=asked.model, tell_limits=shape.limit_headers
        )
        if not body.job.options.is_streaming:
            content = await _collected(turns, shape, record)
            headers.update(unenforced_headers(turns.unenforced))
            return Response(content, media_type="application/json", headers=headers)
        first = await turns.next_events(parts.settings.ping_interval_s)
        headers.update(unenforced_headers(turns.unenforced))
        is_handed_on = True
        return EventStreamResponse(
            turns,
            turns,
            record=record,
            first=first,
            renderer=shape.renderer(turns, turns),
            keeper=shape,
            ping_interval_s=parts.settings.ping_interval_s,
            stop_watching=stop,
            headers=headers,
        )
    except ClientDisconnectedError:
        return Response(status_code=499)
    finally:
        if not is_handed_on:
            stop()
            turns.end("aborted")
            note(record, turns)
            shape.close()


async def _collected(turns: HostedTurns, shape: ResponseShape, record: AccessRecord) -> bytes:
    """The whole answer; a failure is one, too, once a tool was run, which can't be undone."""
    collector = shape.collector(turns, turns)
    try:
        content = await collect_answer(turns, collector)
    except ClientDisconnectedError:
        raise
    except GatewayError as error:
        if not turns.keeps_failure:
            raise
        record.error_code = str(error.code)
        content = collector.fail(error)
    await shape.keep(turns)
    return content
