"""Answers on their way out: one JSON body, or an event stream that ends when its client leaves."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import ClientDisconnectedError, GatewayError
from gateway.http.render.answer import AnswerCollector
from gateway.http.render.stream import PING, StreamRenderer, render_stream_error
from gateway.request.events import GenerationEvent
from gateway.request.generation import Generation

_MAX_WAIT_S = 3600.0


class DisconnectGuard:
    """Cancels the block it guards when the client leaves, and reports that as one clear error.

    Args:
        receive: Of the request, whose body has been read.

    Raises:
        ClientDisconnectedError: On leaving the block, when that has happened.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> "DisconnectGuard":
        self._task = asyncio.current_task()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._has_left and self._task is not None:
            self._task.uncancel()
            if kind is None or issubclass(kind, asyncio.CancelledError):
                raise ClientDisconnectedError("The client has left.") from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._task is not None:
            self._task.cancel()


async def collect_answer(generation: Generation, collector: AnswerCollector) -> bytes:
    """Wait for a whole answer.

    Raises:
        GatewayError: The request failed.
    """
    while (events := await generation.next_events(_MAX_WAIT_S)) is not None:
        collector.add(events)
    if generation.job.options.shows_logprobs:
        # Those of a long prompt are a million objects; other streams must not wait for them.
        return await asyncio.to_thread(collector.body, generation.usage())
    return collector.body(generation.usage())


class EventStreamResponse(Response):
    """Server-sent events of one generation.

    What queued up while the last piece was written leaves in one write. A silent stream gets
    comments. However it ends, the generation is closed.

    Args:
        generation: Started.
        first: What happened already, so that earlier failures could get a status of their own.
        renderer: Makes the bytes.
        ping_interval_s: Silence before a comment.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        first: list[GenerationEvent] | None,
        renderer: StreamRenderer,
        ping_interval_s: float,
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
        self._generation = generation
        self._first = first
        self._renderer = renderer
        self._ping_interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            async with DisconnectGuard(receive):
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
            self._generation.close("aborted")

    async def _send_events(self, send: Send) -> None:
        generation, renderer = self._generation, self._renderer
        events = self._first
        try:
            while events is not None:
                piece = await self._render(events) if events else PING
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                events = await generation.next_events(self._ping_interval_s)
            last = renderer.finish(generation.usage())
        except GatewayError as error:
            last = render_stream_error(error)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _render(self, events: list[GenerationEvent]) -> bytes:
        options = self._generation.job.options
        if options.echoes and options.shows_logprobs:
            return await asyncio.to_thread(self._renderer.render, events)  # see collect_answer
        return self._renderer.render(events)
