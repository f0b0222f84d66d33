"""POST /v1/chat/completions and /v1/completions."""

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import ClientDisconnectedError
from gateway.http.access import GuardedRoute, caller_of, parsed_body
from gateway.http.disconnect import watch
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
from gateway.http.parsers import CHAT, COMPLETION, GenerationBody
from gateway.http.parts import parts_of
from gateway.http.render.answer import AnswerCollector, ChatCollector, CompletionCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.stream import (
    ChatStreamRenderer,
    CompletionStreamRenderer,
    StreamRenderer,
)
from gateway.http.responses import EventStreamResponse, collect_answer, note
from gateway.http.schemas.chat import ChatRequest
from gateway.http.schemas.completion import CompletionRequest
from gateway.http.schemas.sampling import GenerationRequest
from gateway.request.generation import GenerationWork
from gateway.request.job import CHAT_ENDPOINT, COMPLETION_ENDPOINT, GenerationJob
from gateway.request.request import Request
from gateway.telemetry.access_log import AccessRecord

router = APIRouter(route_class=GuardedRoute)


def _schema(model: type[GenerationRequest]) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(CHAT_ENDPOINT, tags=["generation"], openapi_extra=_schema(ChatRequest))
async def chat_completions(request: HttpRequest) -> Response:
    """Go on with a conversation."""
    return await _answer(request, await parsed_body(request, CHAT))


@router.post(COMPLETION_ENDPOINT, tags=["generation"], openapi_extra=_schema(CompletionRequest))
async def completions(request: HttpRequest) -> Response:
    """Go on with a text."""
    return await _answer(request, await parsed_body(request, COMPLETION))


async def _answer(http_request: HttpRequest, body: GenerationBody) -> Response:
    parts, job = parts_of(http_request), body.job
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    record: AccessRecord = http_request.state.log
    request, work = parts.requests.generation(
        job, caller_of(http_request), http_request.state.request_id
    )
    stop = watch(http_request.scope, http_request.receive, request.on_client_gone)
    is_handed_on = False
    try:
        await request.start()
        head = _head(request, work, int(parts.wall_clock()))
        headers.update(limit_headers(request.limits))
        if not job.options.is_streaming:
            content = await collect_answer(work, _collector(job, head))
            return Response(content, media_type="application/json", headers=headers)
        # Until the first output a failure still gets a status of its own.
        first = await work.next_events(parts.settings.ping_interval_s)
        is_handed_on = True
        return EventStreamResponse(
            request,
            work,
            record=record,
            first=first,
            renderer=_renderer(job, head),
            ping_interval_s=parts.settings.ping_interval_s,
            stop_watching=stop,
            headers=headers,
        )
    except ClientDisconnectedError:
        return Response(status_code=499)  # nobody reads it; nginx's code, for the metrics
    finally:
        if not is_handed_on:
            stop()
            request.end("aborted")
            note(record, request)


def _head(request: Request, work: GenerationWork, created: int) -> AnswerHead:
    offer = work.offer
    prefix = "chatcmpl" if work.job.endpoint == CHAT_ENDPOINT else "cmpl"
    return AnswerHead(
        id=f"{prefix}-{request.request_id}",
        created=created,
        model=work.model,
        system_fingerprint=f"fp_{'' if offer is None else offer.fingerprint[:12]}",
    )


def _collector(job: GenerationJob, head: AnswerHead) -> AnswerCollector:
    kind = ChatCollector if job.endpoint == CHAT_ENDPOINT else CompletionCollector
    return kind(head, job.num_streams, job.options)


def _renderer(job: GenerationJob, head: AnswerHead) -> StreamRenderer:
    kind = ChatStreamRenderer if job.endpoint == CHAT_ENDPOINT else CompletionStreamRenderer
    return kind(head, job.options)
