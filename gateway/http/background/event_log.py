"""Streams of a background response: what was told, then what comes, to whoever asks for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.http.background.background_responses import BackgroundResponses
from gateway.http.background.background_task import told_events
from gateway.http.connections.disconnect import watch
from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.openresponses.render import DONE, PING, ToldEvent
from gateway.storage.records import OVER

_LOOK_S: Final = 0.5
"""How often the store is asked where another gateway makes the response."""
JUDGED_S: Final = 5.0
"""How often it is asked whether its caller may still read it."""


class EventLogResponse(Response):
    """Server-sent events of a background response, from one of them on.

    Args:
        background: Knows the store, and when there is more.
        tenant: Whose it is.
        response_id: Of it.
        judge: Raises once its caller may not read it any more.
        after: The number of the last event that the client has; -1 for none.
        ping_interval_s: Silence before a comment.
        headers: More headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        background: BackgroundResponses,
        tenant: str,
        response_id: str,
        *,
        judge: Callable[[], Awaitable[None]],
        after: int,
        ping_interval_s: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**headers, **STREAM_HEADERS})
        del self.headers["content-length"]
        self._background = background
        self._tenant = tenant
        self._response_id = response_id
        self._judge = judge
        self._after = after
        self._ping_interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until the response or the client ends."""
        task = asyncio.get_running_loop().create_task(self._send(send))
        stop = watch(scope, receive, lambda: _cancel(task))
        try:
            await asyncio.wait((task,))
        finally:
            stop()
            task.cancel()
        if not task.cancelled():
            task.result()

    async def _send(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        # The head leaves with the first of the body, and the first event may take a while.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        try:
            async for piece in self._pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            last = DONE
        except GatewayError as error:
            row = ERROR_TABLE[error.code]
            flat = {"code": row.code, "message": error.message, "param": error.param}
            number = self._after + 1
            told = {"type": "error", **flat, "sequence_number": number}
            last = ToldEvent("error", number, orjson.dumps(told)).as_sse() + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pieces(self) -> AsyncIterator[bytes]:
        silent_s = 0.0
        clock = asyncio.get_running_loop().time
        judged_at = clock()
        while True:
            if clock() - judged_at >= JUDGED_S:
                await self._judge()
                judged_at = clock()
            found, status = await self._background.store.jobs.events_after(
                self._tenant, self._response_id, self._after
            )
            if found:
                silent_s = 0.0
                events = [event for piece in found for event in await told_events(piece)]
                yield b"".join(
                    ToldEvent(event["type"], 0, orjson.dumps(event)).as_sse()
                    for event in events
                    if event["sequence_number"] > self._after
                )
                self._after = found[-1].last
                continue
            if status in OVER:
                return
            if silent_s >= self._ping_interval_s:
                silent_s = 0.0
                yield PING
            wait_s = min(_LOOK_S, self._ping_interval_s)
            await self._background.wait(self._response_id, wait_s)
            silent_s += wait_s


STREAM_HEADERS: Final = {
    "cache-control": "no-cache, no-transform",
    # nginx would hold the events back otherwise.
    "x-accel-buffering": "no",
}


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
