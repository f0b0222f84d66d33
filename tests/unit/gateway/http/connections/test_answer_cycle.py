"""Answers as they are written: a head never alone, framed as the client can read them."""

import asyncio
import logging
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.http.connections.answer_cycle import AnswerCycle


class Transport(asyncio.Transport):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        if data:
            self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True


class Answer:
    """One cycle and what came of it."""

    def __init__(
        self, method: str = "POST", version: str = "1.1", *, keeps_alive: bool = True
    ) -> None:
        self.transport = Transport()
        self.num_ends = 0
        self.cycle = AnswerCycle(
            scope=cast(Any, {"method": method, "http_version": version}),
            transport=self.transport,
            flow=FlowControl(self.transport),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keeps_alive,
            on_response=self._on_end,
        )

    def _on_end(self) -> None:
        self.num_ends += 1

    async def start(self, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        kind = "http.response.start"
        await self.cycle.send({"type": kind, "status": status, "headers": headers})

    async def body(self, body: bytes, *, is_last: bool = True) -> None:
        kind = "http.response.body"
        await self.cycle.send({"type": kind, "body": body, "more_body": not is_last})

    @property
    def writes(self) -> list[bytes]:
        return self.transport.writes


def length(number: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(number).encode())


async def test_a_whole_answer_leaves_in_one_write() -> None:
    answer = Answer()
    await answer.start(200, length(4))
    assert answer.writes == []
    await answer.body(b"done")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 4\r\n\r\n"
    assert answer.writes == [head + b"done"]
    assert answer.cycle.response_complete
    assert answer.num_ends == 1
    assert not answer.transport.is_closed


async def test_the_head_of_a_stream_leaves_with_its_first_piece_and_its_end_with_the_last() -> None:
    answer = Answer()
    await answer.start()
    for piece in (b"one", b"three"):
        await answer.body(piece, is_last=False)
    await answer.body(b"2")
    first, second, last = answer.writes
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n"
    assert first == head + b"3\r\none\r\n"
    assert (second, last) == (b"5\r\nthree\r\n", b"1\r\n2\r\n0\r\n\r\n")


async def test_an_empty_piece_lets_the_head_go_and_ends_no_stream() -> None:
    answer = Answer()
    await answer.start()
    await answer.body(b"", is_last=False)
    assert len(answer.writes) == 1
    assert answer.writes[0].endswith(b"\r\n\r\n")
    assert b"0\r\n" not in answer.writes[0].partition(b"\r\n\r\n")[2]


async def test_a_large_body_is_not_copied_behind_its_head() -> None:
    answer, body = Answer(), b"x" * 100_000
    await answer.start(200, length(len(body)))
    await answer.body(body)
    assert [len(one) for one in answer.writes][1:] == [len(body)]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body_is_its_head(method: str, status: int) -> None:
    answer = Answer(method)
    await answer.start(status, *([length(9)] if method == "HEAD" else []))
    await answer.body(b"no body!!" if method == "HEAD" else b"")
    (head,) = answer.writes
    assert head.endswith(b"\r\n\r\n")
    assert b"chunked" not in head
    assert answer.num_ends == 1


async def test_an_old_client_gets_no_chunks_but_the_end_of_its_connection() -> None:
    answer = Answer(version="1.0", keeps_alive=False)
    await answer.start()
    await answer.body(b"one", is_last=False)
    await answer.body(b"two")
    assert b"".join(answer.writes).endswith(b"connection: close\r\n\r\nonetwo")
    assert answer.transport.is_closed


async def test_an_answer_that_says_so_ends_the_connection() -> None:
    answer = Answer()
    await answer.start(400, (b"connection", b"close"), length(2))
    await answer.body(b"{}")
    assert answer.writes[0].count(b"connection:") == 1
    assert answer.transport.is_closed


@pytest.mark.parametrize("body", [b"short", b"much longer"])
async def test_a_body_has_the_length_that_its_head_says(body: bytes) -> None:
    answer = Answer()
    await answer.start(200, length(8))
    with pytest.raises(RuntimeError, match="length"):
        await answer.body(body)
    assert answer.writes == []


@pytest.mark.parametrize(
    "header",
    [(b"x-a\r\nx-b", b"1"), (b"x a", b"1"), (b"x-a", b"1\r\nx-b: 2"), (b"x-a", b"\0")],
)
async def test_no_header_makes_another_one(header: tuple[bytes, bytes]) -> None:
    answer = Answer()
    with pytest.raises(RuntimeError, match="invalid"):
        await answer.start(200, header)
    assert answer.writes == []


async def test_what_comes_out_of_turn_is_an_error() -> None:
    answer = Answer()
    with pytest.raises(RuntimeError):
        await answer.body(b"first")
    await answer.start(200, length(0))
    with pytest.raises(RuntimeError):
        await answer.start()
    await answer.body(b"")
    with pytest.raises(RuntimeError):
        await answer.body(b"more")


async def test_nothing_is_written_to_a_client_that_has_left() -> None:
    answer = Answer()
    await answer.start(200, length(4))
    answer.cycle.disconnected = True
    await answer.body(b"done")
    assert answer.writes == []
