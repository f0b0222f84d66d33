"""Requests that no client waits for: a body on its way through the same routes as everybody's."""

import asyncio
import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Message

from gateway.batches.line_room import LineAnswer
from gateway.http.errors.error_table import ERROR_TABLE, error_body
from gateway.request.callers.caller import Caller
from protocol.errors import ErrorCode

_logger = logging.getLogger("penstock.gateway.http")
_BUG = ERROR_TABLE[ErrorCode.INTERNAL_ERROR]


class Errands:
    """Has the application answer bodies for somebody who isn't connected.

    Args:
        app: The routes, with ids, logs and counts around them; asked for with each errand, because
            it is made after this.
    """

    def __init__(self, app: Callable[[], ASGIApp | None]) -> None:
        self._app = app

    async def ask(self, path: str, body: bytes, caller: Caller) -> LineAnswer:
        """The answer of a route to a JSON body; a route that fails has answered 500 before.

        Raises:
            Exception: It failed before it had begun to answer.
        """
        status, has_begun, is_whole = 500, False, False
        headers: dict[str, str] = {}
        pieces: list[bytes] = []
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()  # nobody leaves
            raise AssertionError("this never ends by itself")

        async def send(message: Message) -> None:
            nonlocal status, has_begun, is_whole
            if message["type"] == "http.response.start":
                has_begun, status = True, message["status"]
                headers.update(
                    (name.decode("latin-1").lower(), value.decode("latin-1"))
                    for name, value in message.get("headers", ())
                )
            elif message["type"] == "http.response.body":
                pieces.append(message.get("body", b""))
                is_whole = not message.get("more_body", False)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("ascii"),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode("ascii")),
                (b"x-request-id", caller.trace_id.encode("ascii")),
            ],
            "client": (caller.address, 0),
            "server": None,
            "state": {"caller": caller},
        }
        app = self._app()
        if app is None:
            return LineAnswer(503, {}, b"{}")  # the server is still starting
        try:
            await app(scope, receive, send)
        except Exception:
            if not has_begun:
                raise
            # As a connection's client it is told what was answered, and the log all the rest.
            _logger.exception("request %s: %s failed", caller.trace_id, path)
            if not is_whole:
                return LineAnswer(500, headers, error_body("Internal server error.", _BUG))
        return LineAnswer(status, headers, b"".join(pieces))
