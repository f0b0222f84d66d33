"""Answers on their way out: one JSON body, or an event stream that ends when its client leaves."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import orjson
from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.bridge import Outcome
from gateway.errors import ClientDisconnectedError, GatewayError
from gateway.http.connections.disconnect import watch
from gateway.request.callers.identity import Identity
from gateway.request.jobs.job import GenerationJob
from gateway.request.lifecycle.request import Request
from gateway.telemetry.access_log import AccessRecord
from protocol.errors import PenstockError
from protocol.wire.messages import Usage

EventT = TypeVar("EventT")
EventT_contra = TypeVar("EventT_contra", contravariant=True)


def json_answer(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(orjson.dumps(value), headers=headers, media_type="application/json")


class Answering(Protocol):
    """What makes an answer: a request, or several that make one together."""

    @property
    def model(self) -> str:
        """Who answers."""
        ...

    @property
    def identity(self) -> Identity | None:
        """Who the caller turned out to be."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        ...

    @property
    def first_output_s(self) -> float | None:
        """Seconds from the arrival to the first output."""
        ...

    @property
    def keeps_failure(self) -> bool:
        """Whether an answer that failed is stored, too."""
        ...

    def usage(self) -> Usage:
        """What was used so far."""
        ...

    def end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        """End it; idempotent."""
        ...

    def release(self) -> None:
        """Whoever asked has read all it wants."""
        ...


class EventSource(Protocol[EventT]):
    """Where the events of an answer come from."""

    @property
    def job(self) -> GenerationJob:
        """What is generated."""
        ...

    async def next_events(self, timeout_s: float | None) -> list[EventT] | None:
        """What has happened since the last call; None after the last event."""
        ...

    def usage(self) -> Usage:
        """What was used so far."""
        ...


class Collector(Protocol[EventT_contra]):
    """Makes a whole answer of events."""

    def add(self, events: Sequence[EventT_contra]) -> None:
        """Take the events of one wake-up."""
        ...

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        ...


class Renderer(Protocol[EventT_contra]):
    """Makes the bytes of a stream of events."""

    def ping(self) -> bytes:
        """What a silent stream gets."""
        ...

    def render(self, events: Sequence[EventT_contra]) -> bytes:
        """The events of one wake-up."""
        ...

    def finish(self, usage: Usage) -> bytes:
        """The end."""
        ...

    def fail(self, error: PenstockError) -> bytes:
        """The end of a stream that had begun when it failed."""
        ...


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


def note(record: AccessRecord, request: Answering) -> None:
    """Put what a request came to into its line of the access log, and release it."""
    if request.identity is not None:
        record.key_id = request.identity.key_id
    usage = request.usage()
    record.model = request.model
    record.outcome = request.outcome or ""
    record.first_output_s = request.first_output_s
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
    record.cached_tokens = usage.cached_tokens
    request.release()


async def collect_answer(work: EventSource[EventT], collector: Collector[EventT]) -> bytes:
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

    async def keep(self, request: Answering) -> None:
        """The answer is there, and about to be told."""
        ...

    def close(self) -> None:
        """It is over."""
        ...


class EventStreamResponse(Response, Generic[EventT]):
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
        request: Answering,
        work: EventSource[EventT],
        *,
        record: AccessRecord,
        first: list[EventT] | None,
        renderer: Renderer[EventT],
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
                piece = await self._render(events) if events else renderer.ping()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                events = await work.next_events(self._ping_interval_s)
            last = renderer.finish(work.usage())
            await self._keeper.keep(self._request)
        except ClientDisconnectedError:
            raise
        except GatewayError as error:
            self._record.error_code = str(error.code)
            last = renderer.fail(error)
            if self._request.keeps_failure:
                with contextlib.suppress(GatewayError):
                    await self._keeper.keep(self._request)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _render(self, events: list[EventT]) -> bytes:
        options = self._work.job.options
        if options.echoes and options.shows_logprobs:
            return await asyncio.to_thread(self._renderer.render, events)  # see collect_answer
        return self._renderer.render(events)
