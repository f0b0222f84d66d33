"""POST /v1/chat/completions and /v1/completions."""

import logging

from fastapi import APIRouter, Request, Response

from gateway.errors import ClientDisconnectedError, UnsupportedFieldError
from gateway.http.access import GuardedRoute, caller_of, services_of
from gateway.http.convert import NEUTRAL_DEFAULTS, chat_job, completion_job
from gateway.http.error_table import limit_headers
from gateway.http.ignored_fields import ignored_headers
from gateway.http.render.answer import AnswerCollector, ChatCollector, CompletionCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.stream import ChatStreamRenderer, CompletionStreamRenderer, StreamRenderer
from gateway.http.responses import DisconnectGuard, EventStreamResponse, collect_answer
from gateway.http.schemas.chat import ChatRequest, parse_chat_body
from gateway.http.schemas.completion import CompletionRequest, parse_completion_body
from gateway.http.schemas.sampling import GenerationRequest
from gateway.request.generation import Generation
from gateway.request.job import CHAT_ENDPOINT, COMPLETION_ENDPOINT, GenerationJob
from gateway.request.model_limits import check_served
from protocol.runtime import logs
from protocol.wire.messages import EngineOffer, SamplingDefaults

_logger = logging.getLogger("penstock.gateway.http")

router = APIRouter(route_class=GuardedRoute)


def _schema(model: type[GenerationRequest]) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(CHAT_ENDPOINT, tags=["generation"], openapi_extra=_schema(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Go on with a conversation."""
    body, raw, ignored = parse_chat_body(await request.body())
    if body.tools and not services_of(request).settings.tools:
        raise UnsupportedFieldError("Tool calling is switched off on this server.", param="tools")
    offer = services_of(request).engines.offer(body.model)
    return await _answer(request, chat_job(body, raw, _defaults(offer)), offer, ignored)


@router.post(COMPLETION_ENDPOINT, tags=["generation"], openapi_extra=_schema(CompletionRequest))
async def completions(request: Request) -> Response:
    """Go on with a text."""
    body, ignored = parse_completion_body(await request.body())
    offer = services_of(request).engines.offer(body.model)
    return await _answer(request, completion_job(body, _defaults(offer)), offer, ignored)


def _defaults(offer: EngineOffer | None) -> SamplingDefaults:
    return NEUTRAL_DEFAULTS if offer is None else offer.sampling_defaults


async def _answer(
    request: Request, job: GenerationJob, offer: EngineOffer | None, ignored: list[str]
) -> Response:
    services = services_of(request)
    if offer is not None:
        check_served(job, offer, services.engines.version(job.model))
    headers = ignored_headers(ignored, strict=services.settings.strict_fields)
    request_id: str = request.state.request_id
    logs.request_id.set(request_id)
    _logger.debug("client's request id: %s", request.state.client_request_id)
    generation = Generation(services, job, caller_of(request), request_id)
    try:
        async with DisconnectGuard(request.receive):
            await generation.start()
            head = _head(generation, int(services.wall_clock()))
            headers.update(limit_headers(generation.limits))
            if not job.options.is_streaming:
                content = await collect_answer(generation, _collector(job, head))
                return Response(content, media_type="application/json", headers=headers)
            # Until the first output a failure still gets a status of its own.
            first = await generation.next_events(services.settings.ping_interval_s)
        return EventStreamResponse(
            generation,
            first,
            _renderer(job, head),
            services.settings.ping_interval_s,
            headers,
        )
    except ClientDisconnectedError:
        generation.close("aborted")
        _logger.info("the client of request %s has left", request_id)
        return Response(status_code=499)  # nobody reads it; nginx's code, for the metrics
    except BaseException:
        generation.close("aborted")
        raise


def _head(generation: Generation, created: int) -> AnswerHead:
    offer = generation.offer
    prefix = "chatcmpl" if generation.job.endpoint == CHAT_ENDPOINT else "cmpl"
    return AnswerHead(
        id=f"{prefix}-{generation.request_id}",
        created=created,
        model=generation.job.model,
        system_fingerprint=f"fp_{'' if offer is None else offer.fingerprint[:12]}",
    )


def _collector(job: GenerationJob, head: AnswerHead) -> AnswerCollector:
    kind = ChatCollector if job.endpoint == CHAT_ENDPOINT else CompletionCollector
    return kind(head, job.num_streams, job.options)


def _renderer(job: GenerationJob, head: AnswerHead) -> StreamRenderer:
    kind = ChatStreamRenderer if job.endpoint == CHAT_ENDPOINT else CompletionStreamRenderer
    return kind(head, job.options)
