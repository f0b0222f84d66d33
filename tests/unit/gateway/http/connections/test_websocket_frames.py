"""Frames of WebSockets: whole messages however they are cut, and nothing else ever raised."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.connections import websocket
from gateway.http.connections.socket_buffers import SocketBuffers
from gateway.http.connections.websocket import (
    MAX_WAITING,
    CloseCode,
    FrameReader,
    WebSocket,
    WebSocketError,
    accept_key,
    frame,
)

MAX_BYTES = 200


def masked(
    opcode: int, payload: bytes, mask: bytes = b"\1\2\3\4", *, is_last: bool = True
) -> bytes:
    """A frame of a client."""
    length = len(payload)
    head = bytes([opcode | (0x80 if is_last else 0)])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += b"\xfe" + length.to_bytes(2, "big")
    else:
        head += b"\xff" + length.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def read(data: bytes, cuts: list[int], max_bytes: int = MAX_BYTES) -> object:
    """What comes of bytes in these cuts: messages, or the code of the end."""
    reader, found, start = FrameReader(max_bytes), [], 0
    try:
        for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
            found += reader.feed(data[start:end])
            start = end
    except WebSocketError as error:
        return error.code
    return found


PIECES = st.lists(st.binary(max_size=40), min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=6)


@given(st.lists(PIECES, max_size=4), st.binary(min_size=4, max_size=4), CUTS)
def test_messages_come_whole_however_they_are_cut(
    messages: list[list[bytes]], mask: bytes, cuts: list[int]
) -> None:
    data = b""
    for pieces in messages:
        for place, piece in enumerate(pieces):
            is_last = place == len(pieces) - 1
            data += masked(1 if place == 0 else 0, piece, mask, is_last=is_last)
            if not is_last:
                data += masked(9, b"between", mask)
    found = read(data, cuts)
    assert isinstance(found, list)
    assert [payload for opcode, payload in found if opcode == 1] == list(map(b"".join, messages))
    assert {payload for opcode, payload in found if opcode == 9} <= {b"between"}


@given(st.binary(max_size=400), CUTS)
def test_whatever_comes_ends_alike_in_every_cut(data: bytes, cuts: list[int]) -> None:
    assert read(data, cuts) == read(data, [])


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536])
def test_lengths_are_written_as_they_are_read(length: int) -> None:
    payload = b"x" * length
    assert read(masked(1, payload), [], 100_000) == [(1, payload)]
    sent = frame(1, payload)
    assert sent.endswith(payload)
    assert len(sent) - length == (2 if length < 126 else 4 if length < 65_536 else 10)


def test_a_declared_length_is_refused_before_its_bytes_come() -> None:
    reader = FrameReader(MAX_BYTES)
    with pytest.raises(WebSocketError) as caught:
        reader.feed(b"\x81\xff" + (2**62).to_bytes(8, "big"))
    assert caught.value.code is CloseCode.TOO_LARGE


@pytest.mark.parametrize("key", [b"", b"x", b"dGhlIHNhbXBsZSBub25j", b"\xff" * 24, b"=" * 24])
def test_what_is_no_key_is_not_answered(key: bytes) -> None:
    assert accept_key(key) is None


class Paused:
    """A connection that knows whether it is read."""

    is_full = False
    is_paused = False
    is_closed = False

    def __init__(self) -> None:
        self.written: asyncio.Queue[bytes] = asyncio.Queue()

    def write(self, data: bytes) -> None:
        self.written.put_nowait(data)

    async def drain(self) -> None: ...

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def set_idle(self, *, is_idle: bool) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def socket_on(connection: Paused, buffers: SocketBuffers | None = None) -> WebSocket:
    buffer = (buffers or SocketBuffers(100 * MAX_BYTES)).open(b"caller")
    return WebSocket(connection, MAX_BYTES, buffer)


@pytest.mark.parametrize(
    ("length", "most"), [(MAX_BYTES, 1), (MAX_BYTES // 2, 2), (1, MAX_WAITING)]
)
async def test_no_more_waits_than_one_message_may_have(length: int, most: int) -> None:
    connection = Paused()
    socket = socket_on(connection)
    for number in range(1, most + 1):
        assert not connection.is_paused
        socket.feed(masked(1, b"x" * length))
        assert connection.is_paused == (number == most)
    for _ in range(most):
        assert await socket.receive() == b"x" * length
        assert not connection.is_paused
    socket.lost()


async def test_sockets_of_one_caller_wait_together_for_what_it_holds() -> None:
    buffers = SocketBuffers(MAX_BYTES)
    first, second = Paused(), Paused()
    sockets = [socket_on(one, buffers) for one in (first, second)]
    sockets[0].feed(masked(1, b"x" * 150))
    # Not even its head is whole, but it is held.
    sockets[1].feed(masked(1, b"y" * 150)[:-1])
    assert (first.is_paused, second.is_paused) == (False, True)
    assert await sockets[0].receive() == b"x" * 150
    # It is still in somebody's hands.
    assert (first.is_paused, second.is_paused) == (False, True)
    sockets[0].let_go()
    assert (first.is_paused, second.is_paused) == (False, False)
    sockets[1].feed(masked(1, b"y" * 150)[-1:])
    assert await sockets[1].receive() == b"y" * 150
    for socket in sockets:
        socket.lost()
    assert not buffers._callers


async def test_who_is_not_read_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_INTERVAL_S", 0.0)
    connection = Paused()
    socket = socket_on(connection)
    socket.feed(masked(1, b"x" * MAX_BYTES))
    for _ in range(3):
        assert await connection.written.get() == frame(9, b"")
    assert not connection.is_closed
    socket.lost()
