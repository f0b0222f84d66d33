"""How an answer is written: its head leaves with its first bytes, and its end may linger."""

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.http.connections.disconnect import Disconnects

_BAD_NAME: Final = re.compile(rb'[\x00-\x20\x7f()<>@,;:\\[\]={}"]')
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LARGE_BYTES: Final = 64 * 1024
"""From here on a body is written by itself: to copy it would take longer than to write twice."""
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class AnswerCycle(RequestResponseCycle):
    """uvicorn's cycle of a request and its answer, whose head waits for the first of the body.

    As the ASGI specification has it: a server sends nothing before the first
    `http.response.body`, which may be empty. uvicorn writes the head at once; over a connection
    with Nagle's algorithm off that is a packet of its own, and wakes the client for nothing.

    A client of HTTP/1.0 gets no chunks (RFC 9112 §6.1) but an answer that ends with the
    connection. Names of headers are in small letters, as ASGI asks.
    """

    disconnects: Disconnects
    """Who wants to know when the client leaves."""

    # Of the class, which is put onto a cycle that uvicorn has made.
    _head: bytes | None = None
    _left: int | None = None
    """Bytes of the body that are still due; None where its head doesn't say how many."""

    async def send(self, message: Any) -> None:
        """What the application sends."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started and kind == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._begin(message["status"], message.get("headers", ()))
        elif self.response_started and not self.response_complete and kind == "http.response.body":
            self._write(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is sent at the wrong time.")

    def _begin(self, status: int, given: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head, and how the body is framed.

        Raises:
            RuntimeError: A header has a character that would make another one of it.
        """
        headers = [*self.default_headers, *given]
        names, values = zip(*headers, strict=True) if headers else ((), ())
        if _BAD_NAME.search(b"".join(names)):
            raise RuntimeError("The name of a header of the answer is invalid.")
        if _BAD_VALUE.search(b"".join(values)):
            raise RuntimeError("The value of a header of the answer is invalid.")
        lines = [STATUS_LINE[status][:-2], *map(b": ".join, headers)]
        known = dict(headers)
        if b"close" in known.get(b"connection", b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close")
        length = known.get(b"content-length")
        is_old = self.scope["http_version"] == "1.0"
        self.chunked_encoding = False
        if self.scope["method"] == "HEAD" or status in _WITHOUT_BODY:
            self._left = 0
        elif length is not None:
            self._left = None if is_old else int(length)
        elif not is_old:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join((*lines, b"", b""))

    def _write(self, body: bytes | memoryview, *, is_last: bool) -> None:
        head, self._head = self._head, None
        pieces: list[bytes | memoryview] = [] if head is None else [head]
        if self.scope["method"] == "HEAD":
            body = b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_last and self._left):
                raise RuntimeError("The answer has another length than its head says.")
        if not self.chunked_encoding:
            pieces.append(body)
        elif body:
            pieces += (b"%x\r\n" % len(body), body, b"\r\n")
        if is_last and self.chunked_encoding:
            pieces.append(b"0\r\n\r\n")
        if self.chunked_encoding or len(body) < _LARGE_BYTES:
            self.transport.write(b"".join(pieces))
        else:
            for piece in pieces:
                self.transport.write(piece)
        if is_last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class AnsweringProtocol(Protocol):
    """What the transport needs of the protocol of its connection."""

    @property
    def has_unread_body(self) -> bool:
        """Whether the request that is answered has sent, or will send, what nobody reads."""
        ...

    def linger(self) -> None:
        """Close once the client had a moment to read."""
        ...


class LingeringTransport:
    """A connection's transport whose `close`, as a cycle calls it after an answer, may linger.

    Args:
        transport: The real one.
        protocol: Knows whether a body was left unread.
    """

    def __init__(self, transport: asyncio.Transport, protocol: AnsweringProtocol) -> None:
        self._transport = transport
        self._protocol: AnsweringProtocol | None = protocol
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def close(self) -> None:
        """Close, after a moment where the client may still be sending."""
        protocol = self._protocol
        if protocol is None or self._transport.is_closing() or not protocol.has_unread_body:
            self._transport.close()
        else:
            protocol.linger()

    def let_go(self) -> None:
        """The connection is gone: two that know each other would wait for the collector."""
        self._protocol = None
