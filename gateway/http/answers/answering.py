"""One generation over HTTP, in the shape of whichever API asked for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request as HttpRequest
from fastapi import Response

from gateway.errors import (
    ClientDisconnectedError,
    GatewayError,
    ModelNotFoundError,
    ModelUnnamedError,
)
from gateway.http.access.guard import caller_of
from gateway.http.access.replaying import refuse_stream
from gateway.http.answers.answer_headers import answer_headers, ignored_headers, unenforced_headers
from gateway.http.answers.responses import (
    Answering,
    EventStreamResponse,
    collect_answer,
    note,
    run_to_end,
)
from gateway.http.bodies.parsed_bodies import (
    TokenizeBody,
)
from gateway.http.connections.disconnect import watch
from gateway.http.errors.error_table import limit_headers
from gateway.http.parts import HttpParts, parts_of
from gateway.http.render.answer import AnswerCollector
from gateway.http.render.stream import StreamRenderer
from gateway.request.jobs.job import GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.kinds.questions import Question
from gateway.request.lifecycle.request import Request
from gateway.telemetry.access_log import AccessRecord
from protocol.errors import ErrorCode
from protocol.version import ProtocolVersion
from protocol.wire.messages import EngineOffer, LimitState, Prepared


class AnswerShape(Protocol):
    """How an API tells what a generation came to."""

    def limit_headers(self, limits: LimitState) -> dict[str, str]:
        """Where the caller stands in its limits."""
        ...

    def collector(self, request: Request, work: GenerationWork) -> AnswerCollector:
        """For a whole answer, of a request that has started."""
        ...

    def renderer(self, request: Request, work: GenerationWork) -> StreamRenderer:
        """For a stream, likewise."""
        ...

    async def keep(self, request: Answering) -> None:
        """The answer is there, and about to be told: store what is to be stored of it.

        Raises:
            GatewayError: It can't be, and the client must know.
        """
        ...

    def close(self) -> None:
        """It has been answered; idempotent. After an error whoever asked may try again."""
        ...


class UnstoredShape:
    """A base for the shapes of APIs that keep nothing of their answers.

    Attributes:
        limit_headers: Where the caller stands in its limits, in OpenAI's words.
    """

    limit_headers = staticmethod(limit_headers)

    async def keep(self, request: Answering) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


class AskedGeneration(Protocol):
    """What a body asks for, of whichever API."""

    @property
    def job(self) -> GenerationJob:
        """In the words of the wire."""
        ...

    @property
    def ignored(self) -> list[str]:
        """Fields without a meaning here."""
        ...


async def answer(http_request: HttpRequest, body: AskedGeneration, shape: AnswerShape) -> Response:
    """Run a generation; its whole answer, or the stream that tells it.

    Raises:
        GatewayError: It failed before anything of an answer was there.
    """
    parts, job = parts_of(http_request), body.job
    if job.options.is_streaming:
        refuse_stream(http_request)
    too_long = None
    names_ids = job.names_token_ids
    model = parts.names.choose(job.model, names_token_ids=names_ids)
    first_id, num_takes = http_request.scope["state"]["request_id"], 1
    request_id = first_id
    while True:
        try:
            response = await _answer_by(http_request, parts, model, request_id, body, shape)
        except GatewayError as error:
            if too_long is not None and error.code is ErrorCode.PERMISSION_DENIED:
                # Of a model that the caller may not use it need not hear.
                raise too_long from None
            if error.code is not ErrorCode.CONTEXT_LENGTH_EXCEEDED:
                raise
            too_long = error
            longer = parts.names.longer(job.model, model, names_token_ids=names_ids)
            if longer is None:
                raise
            # Nothing was told yet, and what was reserved for it is settled.
            model, num_takes = longer, num_takes + 1
            request_id = f"{first_id}-{num_takes}"
        else:
            if not isinstance(response, EventStreamResponse):
                shape.close()
            return response


async def _answer_by(
    http_request: HttpRequest,
    parts: HttpParts,
    model: str,
    request_id: str,
    body: AskedGeneration,
    shape: AnswerShape,
) -> Response:
    """The same by one model, whose name is told where it isn't the one that was asked for."""
    job = body.job
    if job.is_cut_by_context and _has_no_longer(parts, job, model):
        job = job.cut_by_context()
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    record: AccessRecord = http_request.scope["state"]["log"]
    request, work = parts.requests.generation(job, caller_of(http_request), request_id, model=model)
    stop = watch(http_request.scope, http_request.receive, request.on_client_gone)
    is_handed_on = False
    try:
        await request.start()
        unread = work.unread
        if unread:
            headers |= ignored_headers([*body.ignored, *unread], strict=False)
        headers |= answer_headers(
            request.lease, model=model, asked=job.model, tell_limits=shape.limit_headers
        )
        if not job.options.is_streaming:
            content = await collect_answer(work, shape.collector(request, work))
            await shape.keep(request)
            headers.update(unenforced_headers(work.unenforced))
            return Response(content, media_type="application/json", headers=headers)
        # Until the first output a failure still gets a status of its own.
        first = await work.next_events(parts.settings.ping_interval_s)
        headers.update(unenforced_headers(work.unenforced))
        is_handed_on = True
        return EventStreamResponse(
            request,
            work,
            record=record,
            first=first,
            renderer=shape.renderer(request, work),
            keeper=shape,
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


def _has_no_longer(parts: HttpParts, job: GenerationJob, model: str) -> bool:
    """Whether no other model would take a prompt that is too long for this one."""
    return parts.names.longer(job.model, model, names_token_ids=job.names_token_ids) is None


@dataclass(frozen=True, slots=True)
class CountedTokens:
    """What became of the question how many tokens a prompt has.

    Attributes:
        headers: Which fields had no meaning, and what `answer_headers` tells.
    """

    number: int
    headers: dict[str, str]


def check_model(http_request: HttpRequest, model: str | None) -> None:
    """Refuse the name of a model that isn't served, now or sooner or later.

    Raises:
        ModelNotFoundError: It is none.
    """
    parts = parts_of(http_request)
    models = {*parts.directory.models(), *parts.settings.models}
    if parts.names.served(model or "") not in models:
        raise ModelNotFoundError(model or "", tuple(sorted(models)))


def only_model(parts: HttpParts) -> str:
    """The model that a request means which names none.

    Raises:
        ModelUnnamedError: There are several, or none.
    """
    models = parts.directory.models()
    if len(models) != 1:
        raise ModelUnnamedError(tuple(sorted(models)))
    return next(iter(models))


async def count_tokens(
    http_request: HttpRequest,
    endpoint: str,
    body: TokenizeBody,
    tell_limits: Callable[[LimitState], dict[str, str]] = limit_headers,
) -> CountedTokens:
    """Have an engine count the tokens of a prompt, as a model would read it.

    Args:
        http_request: Of the client.
        endpoint: The template of its route.
        body: The prompt.
        tell_limits: In the words of the API that was asked.

    Raises:
        GatewayError: It can't be counted; there is no such model, for instance.
        ClientDisconnectedError: Nobody is left to answer.
    """
    parts = parts_of(http_request)
    headers = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    if body.model is not None:
        check_model(http_request, body.model)
    question = Question(
        endpoint=endpoint,
        model=body.model or only_model(parts),
        message=body.message,
        answer_kind=Prepared,
        check=_every_engine_counts,
    )
    request, work = parts.requests.question(
        question, caller_of(http_request), http_request.state.request_id
    )
    await run_to_end(http_request, request)
    headers |= answer_headers(
        request.lease, model=work.model, asked=body.model, tell_limits=tell_limits
    )
    return CountedTokens(len(work.answer.prompt_token_ids), headers)


def _every_engine_counts(_offer: EngineOffer, _version: ProtocolVersion) -> None:
    pass
