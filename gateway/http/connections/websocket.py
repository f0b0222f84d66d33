"""WebSockets (RFC 6455) on a connection of the HTTP server: frames, bounds, and their end.

Messages of text only, and no extensions. The handshake has been answered when a `WebSocket` is
made, see `http_protocol`.
"""

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final, Protocol

from gateway.http.connections.socket_buffers import SocketBuffer

EXTENSION: Final = "penstock.websocket"
"""The ASGI extension by which this server's protocol offers an `Upgrade`."""
PING_INTERVAL_S: Final = 30.0
MAX_WAITING: Final = 16
"""Messages that nobody has taken; with more, or with as many bytes as one message may have, nothing
is read from the client."""
MAX_PINGS: Final = 64
"""Of the client, between two of its messages."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_CONTROL_BYTES: Final = 125
_CLOSE_S: Final = 1.0


class CloseCode(IntEnum):
    """Why a WebSocket ends (RFC 6455 §7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    WRONG_TEXT = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL_ERROR = 1011


class _Opcode(IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


_OPCODES: Final = frozenset(_Opcode)


class WebSocketError(Exception):
    """The client broke the protocol, or a bound.

    Args:
        code: What it is told.
        reason: Likewise.
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def accept_key(key: bytes) -> bytes | None:
    """The answer to `Sec-WebSocket-Key`; None when that is no key."""
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            return None
    except ValueError:
        return None
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a server."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, length))
    elif length < 65536:
        head = bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")
    return head + payload


class FrameReader:
    """Makes messages of the bytes of a client.

    Args:
        max_bytes: Of a message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._message = bytearray()
        self._is_within = False

    @property
    def num_bytes(self) -> int:
        """Of what is not whole yet."""
        return len(self._buffer) + len(self._message)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of each message that is whole now, and of each control frame.

        Raises:
            WebSocketError: The client broke the protocol, or its message is too large.
        """
        self._buffer += data
        found: list[tuple[int, bytes]] = []
        while (one := self._next()) is not None:
            is_last, opcode, payload = one
            if opcode >= _Opcode.CLOSE:
                found.append((opcode, payload))
                continue
            if (opcode == _Opcode.CONTINUATION) != self._is_within:
                raise WebSocketError(
                    CloseCode.PROTOCOL_ERROR, "A message is cut into wrong frames."
                )
            if opcode == _Opcode.BINARY:
                raise WebSocketError(CloseCode.UNSUPPORTED, "Messages are JSON text.")
            self._message += payload
            self._is_within = not is_last
            if is_last:
                found.append((_Opcode.TEXT, bytes(self._message)))
                self._message = bytearray()
        return found

    def _next(self) -> tuple[bool, int, bytes] | None:
        """The next frame: whether it is the last of its message, opcode, payload."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode, length = buffer[0] & 0x0F, buffer[1] & 0x7F
        is_last, is_control = bool(buffer[0] & 0x80), opcode >= _Opcode.CLOSE
        if buffer[0] & 0x70 or opcode not in _OPCODES or not buffer[1] & 0x80:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "A frame is malformed.")
        if is_control and (not is_last or length > _MAX_CONTROL_BYTES):
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "A control frame is malformed.")
        start = 2
        if length >= 126:
            start += 2 if length == 126 else 8
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start], "big")
        if length + len(self._message) > self._max_bytes:
            raise WebSocketError(
                CloseCode.TOO_LARGE, f"A message is over the limit of {self._max_bytes} bytes."
            )
        end = start + 4 + length
        if len(buffer) < end:
            return None
        mask, payload = bytes(buffer[start : start + 4]), bytes(buffer[start + 4 : end])
        del buffer[:end]
        return is_last, opcode, _unmasked(payload, mask)


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    length = len(payload)
    pad = (mask * (length // 4 + 1))[:length]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return number.to_bytes(length, "big")


class Connection(Protocol):
    """What a WebSocket needs of the connection that it is on."""

    def write(self, data: bytes) -> None:
        """Send bytes; they may queue."""
        ...

    async def drain(self) -> None:
        """Wait until the client has taken enough of what is queued."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether more is queued than should be."""
        ...

    def pause(self) -> None:
        """Read nothing for now; idempotent."""
        ...

    def resume(self) -> None:
        """Read on; idempotent."""
        ...

    def set_idle(self, *, is_idle: bool) -> None:
        """Whether it may be closed when another client needs its place."""
        ...

    def close(self) -> None:
        """End it; idempotent."""
        ...


class Upgrade(Protocol):
    """A request that would become a WebSocket."""

    def accept(
        self, headers: Mapping[bytes, bytes], max_bytes: int, buffer: SocketBuffer
    ) -> "WebSocket":
        """Answer the handshake.

        Args:
            headers: More of them.
            max_bytes: Of a message.
            buffer: Its part of what its caller's sockets may hold.
        """
        ...


class WebSocket:
    """An open WebSocket.

    Args:
        connection: What it is on.
        max_bytes: Of a message.
        buffer: Its part of what its caller's sockets may hold.
    """

    def __init__(self, connection: Connection, max_bytes: int, buffer: SocketBuffer) -> None:
        self._connection = connection
        self._reader = FrameReader(max_bytes)
        self._max_bytes = max_bytes
        self._buffer = buffer
        self._buffer.on_room = self._read_on
        self._num_waiting_bytes = 0
        self._num_taken_bytes = 0
        self._messages: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._on_lost: Callable[[], None] | None = None
        self._is_over = False
        self._has_closed = False
        self._num_pings = 0
        self._is_answered = True
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)

    # For whoever talks over it.

    async def receive(self) -> bytes | None:
        """The next message; None when there will be none.

        It counts as held until `let_go`, or until the next one is asked for.
        """
        self.let_go()
        while not self._messages:
            if self._is_over:
                return None
            self._arrived.clear()
            self._connection.set_idle(is_idle=True)
            try:
                await self._arrived.wait()
            finally:
                self._connection.set_idle(is_idle=False)
        message = self._messages.popleft()
        self._num_waiting_bytes -= len(message)
        self._num_taken_bytes = len(message)
        self._read_on()
        return message

    def let_go(self) -> None:
        """The message that was received last is gone, or counts elsewhere."""
        if self._num_taken_bytes:
            self._num_taken_bytes = 0
            self._hold()
            self._read_on()

    async def send(self, text: bytes) -> None:
        """Send a message; waits while the client takes nothing."""
        if not self._has_closed:
            self._connection.write(frame(_Opcode.TEXT, text))
            await self._connection.drain()

    def on_lost(self, callback: Callable[[], None] | None) -> None:
        """Call somebody, and nobody else, when the client leaves; at once if it has left."""
        self._on_lost = callback
        if callback is not None and self._is_over:
            self._on_lost = None
            callback()

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Tell the client the end, and end the connection once it had a moment; idempotent."""
        if self._has_closed:
            return
        self._has_closed = True
        payload = code.to_bytes(2, "big") + reason.encode()[: _MAX_CONTROL_BYTES - 2]
        self._connection.write(frame(_Opcode.CLOSE, payload))
        self._loop.call_later(_CLOSE_S, self._connection.close)
        self._end()

    # For the connection.

    def feed(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._is_over:
            return
        try:
            for opcode, payload in self._reader.feed(data):
                self._take(opcode, payload)
        except WebSocketError as error:
            self.close(error.code, error.reason)
            return
        self._hold()
        if self._is_full:
            self._connection.pause()

    def lost(self) -> None:
        """The connection has ended."""
        self._has_closed = True
        self._end()

    # Small parts.

    @property
    def _is_full(self) -> bool:
        waits = len(self._messages)
        is_full = waits >= MAX_WAITING or self._num_waiting_bytes >= self._max_bytes
        return is_full or self._buffer.is_full

    def _hold(self) -> None:
        num_bytes = self._reader.num_bytes + self._num_waiting_bytes + self._num_taken_bytes
        self._buffer.hold(num_bytes)

    def _read_on(self) -> None:
        if not self._is_full:
            self._connection.resume()

    def _take(self, opcode: int, payload: bytes) -> None:
        self._is_answered = True
        if opcode == _Opcode.TEXT:
            self._num_pings = 0
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise WebSocketError(CloseCode.WRONG_TEXT, "A message is no UTF-8.") from None
            self._messages.append(payload)
            self._num_waiting_bytes += len(payload)
            self._arrived.set()
        elif opcode == _Opcode.PING:
            self._num_pings += 1
            if self._num_pings > MAX_PINGS:
                raise WebSocketError(CloseCode.POLICY, "Too many pings.")
            if not self._connection.is_full:
                self._connection.write(frame(_Opcode.PONG, payload))
        elif opcode == _Opcode.CLOSE:
            self.close(CloseCode.NORMAL)

    def _ping(self) -> None:
        """Whoever answers nothing for a whole interval has left silently.

        Unless nothing is read from it, its answers included.
        """
        if not self._is_answered and not self._is_full:
            self._connection.close()
            return
        self._is_answered = False
        self._connection.write(frame(_Opcode.PING, b""))
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)

    def _end(self) -> None:
        self._is_over = True
        self._buffer.close()
        self._timer.cancel()
        self._arrived.set()
        callback, self._on_lost = self._on_lost, None
        if callback is not None:
            callback()
