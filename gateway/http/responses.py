"""Answers on their way out: one JSON body, or an event stream that ends when its client leaves."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import ClientDisconnectedError, GatewayError
from gateway.http.disconnect import watch
from gateway.http.render.answer import AnswerCollector
from gateway.http.render.stream import StreamRenderer
from gateway.request.events import GenerationEvent
from gateway.request.generation import GenerationWork
from gateway.request.request import Request
from gateway.telemetry.access_log import AccessRecord


async def run_to_end(http_request: HttpRequest, request: Request) -> None:
    """Do work that is done when its start is; a client that leaves ends it.

    Raises:
        GatewayError: It could not be done.
        ClientDisconnectedError: Nobody is left to answer.
    """
    stop = watch(http_request.scope, http_request.receive, request.on_client_gone)
    try:
        await request.start()
    finally:
        stop()
        request.end("aborted")
        note(http_request.state.log, request)


def note(record: AccessRecord, request: Request) -> None:
    """Put what a request came to into its line of the access log, and let go of it."""
    if request.identity is not None:
        record.key_id = request.identity.key_id
    usage = request.usage()
    record.model = request.work.model
    record.outcome = request.outcome or ""
    record.first_output_s = request.first_output_s
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
    record.cached_tokens = usage.cached_tokens
    request.release()


async def collect_answer(work: GenerationWork, collector: AnswerCollector) -> bytes:
    """Wait for a whole answer.

    Raises:
        GatewayError: The request failed.
    """
    while (events := await work.next_events(None)) is not None:
        collector.add(events)
    if work.job.options.shows_logprobs:
        # Those of a long prompt are a million objects; other streams must not wait for them.
        return await asyncio.to_thread(collector.body, work.usage())
    return collector.body(work.usage())


class Keeper(Protocol):
    """Whoever stores what is told."""

    async def keep(self, request: Request) -> None:
        """The answer is there, and about to be told."""
        ...

    def close(self) -> None:
        """It is over."""
        ...


class EventStreamResponse(Response):
    """Server-sent events of one generation.

    What queued up while the last piece was written leaves in one write. A silent stream gets
    comments. However it ends, the request is ended.

    Args:
        request: Started.
        work: Of the request.
        record: Its line of the access log.
        first: What happened already, so that earlier failures could get a status of their own.
        renderer: Makes the bytes.
        keeper: Stores the answer before its end is told.
        ping_interval_s: Silence before a comment.
        stop_watching: Ends the watch for the client that leaves.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        work: GenerationWork,
        *,
        record: AccessRecord,
        first: list[GenerationEvent] | None,
        renderer: StreamRenderer,
        keeper: Keeper,
        ping_interval_s: float,
        stop_watching: Callable[[], None],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            headers={
                **headers,
                "cache-control": "no-cache, no-transform",
                # nginx would hold the events back otherwise.
                "x-accel-buffering": "no",
            }
        )
        del self.headers["content-length"]
        self._request = request
        self._work = work
        self._record = record
        self._first = first
        self._renderer = renderer
        self._keeper = keeper
        self._ping_interval_s = ping_interval_s
        self._stop_watching = stop_watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await self._send_events(send)
        except ClientDisconnectedError:
            return  # nobody is there to be told
        finally:
            self._stop_watching()
            self._request.end("aborted")
            self._keeper.close()
            note(self._record, self._request)

    async def _send_events(self, send: Send) -> None:
        work, renderer = self._work, self._renderer
        events = self._first
        try:
            while events is not None:
                piece = await self._render(events) if events else renderer.ping
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                events = await work.next_events(self._ping_interval_s)
            last = renderer.finish(work.usage())
            await self._keeper.keep(self._request)
        except ClientDisconnectedError:
            raise
        except GatewayError as error:
            self._record.error_code = str(error.code)
            last = renderer.fail(error)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _render(self, events: list[GenerationEvent]) -> bytes:
        options = self._work.job.options
        if options.echoes and options.shows_logprobs:
            return await asyncio.to_thread(self._renderer.render, events)  # see collect_answer
        return self._renderer.render(events)
