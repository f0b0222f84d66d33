"""The load client of `benchmarks.gateway` counts the same however the bytes are cut."""

import asyncio
import json
from typing import cast

import pytest

from benchmarks.gateway_peers.load import Connection, Counts

WORDS = (" bal", " dem go", "")
"""Texts of three events: of one token, of two at once, and the empty one that tells the role."""


class FakeTransport:
    """Takes what is written; `is_closed` once the client left."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.is_closed = True


def connected(counts: Counts, *, is_stream: bool) -> tuple[Connection, FakeTransport]:
    connection = Connection(b"request", counts, is_stream=is_stream)
    transport = FakeTransport()
    connection.connection_made(cast("asyncio.Transport", transport))
    return connection, transport


def event_stream() -> bytes:
    events = [
        json.dumps({"choices": [{"delta": {"content": text}}]}, separators=(",", ":"))
        for text in WORDS
    ]
    chunks = [f"data: {event}\n\n".encode() for event in [*events, "[DONE]"]]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-note: data: of a head\r\n\r\n"
    return head + body + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64, 10_000])
async def test_a_stream_is_counted_alike_in_every_cut(size: int) -> None:
    counts = Counts()
    connection, transport = connected(counts, is_stream=True)
    stream = event_stream()
    for _ in range(2):
        for begin in range(0, len(stream), size):
            connection.data_received(stream[begin : begin + size])
    assert (counts.num_answers, counts.num_events, counts.num_words) == (2, 4, 6)
    assert len(counts.first_s) == 2
    assert transport.written == [b"request"] * 3


@pytest.mark.parametrize("size", [1, 9, 10_000])
async def test_a_json_answer_ends_with_its_declared_length(size: int) -> None:
    counts = Counts()
    connection, transport = connected(counts, is_stream=False)
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"id": "hello"}'[:-1]
    for begin in range(0, len(answer), size):
        assert counts.num_answers == 0
        connection.data_received(answer[begin : begin + size])
    assert counts.num_answers == len(counts.latencies_s) == 1
    assert transport.written == [b"request"] * 2


async def test_an_error_answer_ends_the_measurement() -> None:
    connection, transport = connected(Counts(), is_stream=False)
    connection.data_received(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(RuntimeError, match="503 Busy"):
        await connection.ended
    assert transport.is_closed


async def test_a_stopped_client_leaves_after_its_answer() -> None:
    connection, transport = connected(Counts(), is_stream=True)
    connection.stop()
    connection.data_received(event_stream())
    assert transport.is_closed
    assert transport.written == [b"request"]


async def test_events_of_another_api_are_counted_by_their_own_mark() -> None:
    counts = Counts()
    connection = Connection(b"request", counts, is_stream=True, mark='"delta":" ')
    connection.connection_made(cast("asyncio.Transport", FakeTransport()))
    stream = event_stream().replace(b'"content":', b'"delta":')
    for begin in range(0, len(stream), 5):
        connection.data_received(stream[begin : begin + 5])
    assert (counts.num_answers, counts.num_events) == (1, 2)
