"""HTTP/1.1 on one connection: uvicorn's protocol, with bounds on a head's size and time."""

import asyncio
import contextlib
import select
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.connections.answer_cycle import AnswerCycle, LingeringTransport
from gateway.http.connections.arrival import client_of
from gateway.http.connections.disconnect import EXTENSION, Disconnects
from gateway.http.connections.limits import ConnectionLimits
from gateway.http.connections.socket_buffers import SocketBuffer
from gateway.http.connections.websocket import EXTENSION as WEBSOCKET
from gateway.http.connections.websocket import CloseCode, WebSocket, accept_key
from gateway.http.errors.error_table import ERROR_TABLE, HEAD_TOO_LARGE, ErrorRow, error_body
from gateway.telemetry.refusals import UNKNOWN, Refusals
from protocol.errors import ErrorCode

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; what one read brings beyond it is let through."""
HEAD_TIMEOUT_S = 60.0
_LINGER_S = 1.0
_UNREAD_S = 0.1
_LINGER_BYTES = 1024 * 1024
"""Of a body that nobody reads, so much is taken in after the answer."""
_PIECE_BYTES = 1024
"""A read is parsed in such pieces, and no further once a request waits for another one: 256 KB may
hold ten thousand, each of which takes kilobytes once it is parsed."""
_CHUNKED_PIECE_BYTES = 4096
"""The same of a body that doesn't say how long it is; others are parsed at once."""
_OVERLOADED = ERROR_TABLE[ErrorCode.OVERLOADED]
_LATE = "head_timeout"
_NOT_FORWARDED = frozenset({b"upgrade", b"connection", b"http2-settings"})


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, closed where a hostile or an odd client could hurt.

    It is long because each callback of httptools and of the transport is a method.

    - A head has a bound and a time to arrive; httptools would gather one until memory ends.
    - Trailers are dropped; uvicorn would add them to headers that have been checked already.
    - An `Upgrade` is ignored, as RFC 9110 §7.8 allows (Java's client asks for h2c by default);
      httptools would take the body for another protocol.
    - A client of HTTP/1.0 gets answers that end with the connection, not chunks.
    - What is no HTTP gets OpenAI's error shape, and never lands within a running answer.
    - A client that leaves ends its running request also when another one waits behind it, and
      whoever asked for it (`Disconnects`) is told at once.
    - Connections have bounds, in all and by address.
    - Of pipelined requests few are parsed at a time.
    - An answer to a request whose body nobody read is followed by the end of the connection only
      after the client had a moment to read it.

    Args:
        limits: The bounds of connections.
        refusals: Is told of what is refused here, and so becomes no request.
        args: As uvicorn's protocol takes them.
        kwargs: Likewise.
    """

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits | None = None,
        refusals: Refusals | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self._limits = limits
        self._refusals = refusals
        self._has_told = False
        self._head_began_at = self.loop.time()
        self._is_admitted = False
        self._num_lingering_bytes = 0
        self._is_in_head = False
        self._is_refused = False
        self._num_head_bytes = 0
        self._num_body_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._cycles: list[AnswerCycle] = []
        self._upgrade: WebSocketUpgrade | None = None
        # What was read behind a request that waits.
        self._unparsed = b""

    # What the connection reports.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self.client = client_of(transport)
        # What an answer is written to; its end may have to wait for the client.
        self._answer_transport = LingeringTransport(transport, self)
        self.address = self.client[0] if self.client else ""
        if self._limits is not None:
            self._is_admitted = self._limits.admit(self)
            if not self._is_admitted:
                self._refuse("Too many connections; please try again later.", _OVERLOADED)
                return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client disconnected."""
        self._stop_head_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        if self._is_admitted and self._limits is not None:
            self._is_admitted = False
            self._limits.leave(self)
        cycles, self._cycles = self._cycles, []
        for cycle in cycles:
            if not cycle.response_complete:
                cycle.disconnects.fire()
        for cycle in cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
            cycle.body = bytearray()
        self._unparsed = b""
        self._answer_transport.let_go()
        if self._upgrade is not None:
            self._upgrade.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a request, or of the messages of a WebSocket."""
        if self._upgrade is not None and self._upgrade.feed(data):
            return
        if self._is_refused:
            self._num_lingering_bytes += len(data)
            if self._num_lingering_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        self._unset_keepalive_if_required()
        self._unparsed += data
        if not self.pipeline:
            self._parse()

    def _parse(self) -> None:
        """Go on with what was read, until it is at its end or a request waits for another one."""
        data, self._unparsed = self._unparsed, b""
        start = 0
        while start < len(data) and not self._is_refused and not self.transport.is_closing():
            if self.pipeline:
                self._unparsed = data[start:]
                return
            end = start + self._num_piece_bytes()
            if not self._parse_piece(data[start:end], data, end):
                return
            start = end

    def _num_piece_bytes(self) -> int:
        """How much may be parsed without looking whether a request waits."""
        if self._is_in_head or self.cycle is None or not self.cycle.more_body:
            return _PIECE_BYTES
        # The parser has refused whatever is no number of 64 bits.
        headers = self.cycle.scope["headers"]
        length = next((int(value) for name, value in headers if name == b"content-length"), 0)
        left = length - self._num_body_bytes
        return left if left > 0 else _CHUNKED_PIECE_BYTES

    def _parse_piece(self, piece: bytes, data: bytes, end: int) -> bool:
        """Parse `piece`, which ends at `end` of `data`; whether what follows it is still to be."""
        self._num_head_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
            is_between = self.cycle is None or self.cycle.response_complete
            if (self._is_in_head or is_between) and self._head_timer is None:
                self._start_head_timer()  # most heads come whole; empty lines are no head
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :] + data[end:])
        except httptools.HttpParserError:
            self.send_400_response("The request is not valid HTTP/1.1.")
        else:
            if self._num_head_bytes <= MAX_HEAD_BYTES:
                return True
            self._refuse(
                f"The request's headers are over the limit of {MAX_HEAD_BYTES} bytes.",
                HEAD_TOO_LARGE,
            )
        return False

    # What the parser reports.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head = True
        self._num_body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there: the request starts."""
        self._is_in_head = False
        self._num_head_bytes = 0
        self._stop_head_timer()
        if self.parser.should_upgrade():
            return  # `data_received` goes on from here
        disconnects = Disconnects()
        extensions: dict[str, Any] = {EXTENSION: disconnects}
        if self._upgrade is not None:
            extensions[WEBSOCKET] = self._upgrade
        self.scope["extensions"] = extensions
        if self._limits is not None:
            self._limits.on_busy(self)
        super().on_headers_complete()
        # Its task, which sends by it, has not run yet.
        self.cycle.__class__ = AnswerCycle
        cycle = self.cycle
        assert isinstance(cycle, AnswerCycle)
        cycle.transport = self._answer_transport  # type: ignore[assignment]
        cycle.disconnects = disconnects
        self._cycles.append(cycle)
        if self.pipeline:
            self._watch_unread()

    def on_body(self, body: bytes) -> None:
        """More of a body, which has bounds of its own."""
        self._num_head_bytes = 0
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._num_head_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()
            if not self.pipeline:
                # A last piece that was large has stopped the reading, and nobody would see the
                # client leave any more.
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """An answer is out."""
        cycles, self._cycles = self._cycles, []
        for cycle in cycles:
            if cycle.response_complete:
                cycle.body = bytearray()  # what nobody read
            else:
                self._cycles.append(cycle)
        super().on_response_complete()
        if self._unparsed:
            self.flow.pause_reading()
            self.loop.call_soon(self._parse_on)
        # A pipelined request has just begun where there was one.
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._is_admitted and self._limits is not None and is_idle:
            self._limits.on_idle(self)

    def _parse_on(self) -> None:
        if not self.pipeline:
            self._unset_keepalive_if_required()
            self._parse()
            if not self.pipeline and not self.transport.is_closing():
                self.flow.resume_reading()

    def close_idle(self) -> None:
        """Make room for a newcomer: no request is under way here."""
        self._stop_head_timer()
        self.transport.close()
        if self._is_admitted and self._limits is not None:
            self._is_admitted = False
            self._limits.leave(self)

    def shutdown(self) -> None:
        """This server stops."""
        if self._upgrade is not None and self._upgrade.is_accepted:
            self._upgrade.close()
            return
        super().shutdown()

    def set_idle(self, *, is_idle: bool) -> None:
        """Whether the WebSocket here waits for its client."""
        if self._is_admitted and self._limits is not None:
            if is_idle:
                self._limits.on_idle(self)
            else:
                self._limits.on_busy(self)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(msg, ERROR_TABLE[ErrorCode.INVALID_REQUEST])

    # Small parts.

    def _refuse(self, message: str, row: ErrorRow) -> None:
        """Answer with an error and close; or only close, after the answers that are due."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body or cycle.response_started:
                self._tell(0, row.code)
                cycle.keep_alive = False
                self.flow.pause_reading()
                self._watch_unread()
                return
            cycle.disconnected = True
            cycle.message_event.set()
            self._has_told = True  # it has become a request, which has a line of its own
        body = error_body(message, row)
        request_id = self._tell(row.status, row.code)
        more = "retry-after: 1\r\n" if row.status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        if request_id:
            more += f"x-request-id: {request_id}\r\nx-penstock-request-id: {request_id}\r\n"
        head = (
            f"HTTP/1.1 {row.status} {HTTPStatus(row.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"connection: close\r\n{more}\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.linger()

    def _tell(self, status: int, error_code: str) -> str:
        """What came is refused; its id."""
        if self._refusals is None or self._has_told:
            return ""
        self._has_told = True
        has_method = self._is_in_head and bool(self.url)
        method = self.parser.get_method().decode("ascii") if has_method else UNKNOWN
        return self._refusals.tell(self.address, status, error_code, self._head_began_at, method)

    def linger(self) -> None:
        """Close once the client had a moment to read.

        Closing with unread data would reset the connection, and the client would see that instead
        of the answer (RFC 9112 §9.6).
        """
        self._is_refused = True
        self._stop_head_timer()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    @property
    def has_unread_body(self) -> bool:
        """Whether the request that is answered has sent, or will send, what nobody reads."""
        return self.cycle is not None and self.cycle.more_body

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request again as the plain HTTP/1.1 that it is as well."""
        method: bytes = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("This server is not a proxy.")
            return
        is_free = self.cycle is None or self.cycle.response_complete
        if method == b"GET" and is_free and not rest:
            self._upgrade = WebSocketUpgrade.of(self, self.headers)
        head = [method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name == b"connection" and b"close" in value.lower():
                head.append(b"connection: close\r\n")
            if name not in _NOT_FORWARDED:
                head += (name, b": ", value, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(AttributeError):  # httptools before 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join(head) + b"\r\n" + rest)

    def _watch_unread(self) -> None:
        """Look now and then whether the client has left, while nothing is read from it."""
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(_UNREAD_S, self._on_unread)

    def _on_unread(self) -> None:
        self._unread_timer = None
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._watch_unread()

    def _start_head_timer(self) -> None:
        self._head_began_at = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._on_late_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_late_head(self) -> None:
        if any(not cycle.response_complete for cycle in self._cycles):
            self._start_head_timer()  # a pipelined head may wait for its turn
        elif not self.transport.is_closing():
            if self._is_in_head:
                self._tell(0, _LATE)
            self.transport.close()


class WebSocketUpgrade:
    """A request that would become a WebSocket, and the connection of the one that it became.

    The route decides; unless it accepts, the request is answered as the plain GET that it is too.

    Args:
        protocol: Of the connection.
        key: Of the handshake, answered.
    """

    def __init__(self, protocol: BoundedHttpProtocol, key: bytes) -> None:
        self._protocol = protocol
        self._key = key
        self._socket: WebSocket | None = None

    @classmethod
    def of(
        cls, protocol: BoundedHttpProtocol, headers: list[tuple[bytes, bytes]]
    ) -> "WebSocketUpgrade | None":
        """The upgrade that headers ask for; None when they ask for another one, or wrongly."""
        found = dict(headers)
        key = accept_key(found.get(b"sec-websocket-key", b""))
        is_asked = found.get(b"upgrade", b"").lower() == b"websocket"
        if not is_asked or key is None or found.get(b"sec-websocket-version") != b"13":
            return None
        return cls(protocol, key)

    def accept(
        self, headers: Mapping[bytes, bytes], max_bytes: int, buffer: SocketBuffer
    ) -> WebSocket:
        """Answer the handshake."""
        protocol = self._protocol
        lines = [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"]
        lines.append(b"connection: Upgrade\r\nsec-websocket-accept: %b\r\n" % self._key)
        lines += [b"%b: %b\r\n" % pair for pair in headers.items()]
        protocol.transport.write(b"".join(lines) + b"\r\n")
        self._socket = WebSocket(self, max_bytes, buffer)
        # Nothing of the request is left to be answered.
        protocol.cycle.response_started = protocol.cycle.response_complete = True
        protocol.flow.resume_reading()
        return self._socket

    def feed(self, data: bytes) -> bool:
        """Bytes of the client; whether they were those of a WebSocket."""
        if self._socket is None:
            return False
        self._socket.feed(data)
        return True

    def lost(self) -> None:
        """The connection has ended."""
        if self._socket is not None:
            self._socket.lost()

    # What the WebSocket needs.

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if not self._protocol.transport.is_closing():
            self._protocol.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken enough."""
        await self._protocol.flow.drain()

    @property
    def is_full(self) -> bool:
        """Whether more is queued than should be."""
        return self._protocol.flow.write_paused

    def pause(self) -> None:
        """Read nothing for now."""
        self._protocol.flow.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._protocol.flow.resume_reading()

    def set_idle(self, *, is_idle: bool) -> None:
        """Whether it may be closed for another client."""
        self._protocol.set_idle(is_idle=is_idle)

    @property
    def is_accepted(self) -> bool:
        """Whether it is a WebSocket now."""
        return self._socket is not None

    def close(self) -> None:
        """End it, at once."""
        if self._socket is not None:
            self._socket.close(CloseCode.GOING_AWAY, "This server is shutting down.")
        self._protocol.transport.close()
