"""Bodies in pieces: what counts as held, and whose time is whose."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from starlette.types import Message, Receive
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.errors import (
    DeniedError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from gateway.http.bodies import reading as module
from gateway.http.bodies.body_pool import BodyPool
from gateway.http.bodies.parsers import CHAT, ParseContext
from gateway.http.bodies.reading import (
    BODY_TIMEOUT_S,
    LONG_NUMBERS_BYTES,
    PLACE_TIMEOUT_S,
    SMALL_BYTES,
    Bodies,
)
from gateway.http.connections.arrived_body import arrived_body
from tests.fakes.virtual_time import VirtualTimeLoop

PIECE = SMALL_BYTES + 1


LOOP = VirtualTimeLoop


def bodies_of(max_by_caller: int = 1) -> Bodies:
    return Bodies(1 << 20, max_by_caller, BodyPool({}), ParseContext({}))


def pieces(*pauses_s: float, size: int = PIECE) -> Receive:
    """One piece after each pause."""

    async def come() -> AsyncIterator[Message]:
        for number, pause_s in enumerate(pauses_s, 1):
            await asyncio.sleep(pause_s)
            more = number < len(pauses_s)
            yield {"type": "http.request", "body": b"x" * size, "more_body": more}

    iterator = come()
    return iterator.__anext__


async def read(bodies: Bodies, receive: Receive, held_s: float = 0.0) -> int:
    with bodies.place(b"caller") as place:
        body = await bodies.read(receive, place)
        await asyncio.sleep(held_s)  # it is parsed
        return len(body)


async def test_a_body_of_which_nothing_comes_ends() -> None:
    with pytest.raises(InvalidRequestError, match="did not arrive"):
        await read(bodies_of(), pieces(BODY_TIMEOUT_S + 1, size=1))
    assert asyncio.get_running_loop().time() == BODY_TIMEOUT_S


class Arrived:
    """A request at uvicorn, whose `receive` nobody has called."""

    def __init__(self, body: bytes, *, more_body: bool = False, is_gone: bool = False) -> None:
        self.cycle = object.__new__(RequestResponseCycle)
        self.cycle.body, self.cycle.more_body = bytearray(body), more_body
        self.cycle.disconnected = self.cycle.response_complete = is_gone
        self.receive = cast(Receive, self.cycle.receive)


async def test_a_body_that_has_come_is_taken_without_a_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio, "timeout", None)
    arrived = Arrived(b"x" * PIECE)
    assert await read(bodies_of(), arrived.receive) == PIECE
    assert arrived.cycle.body == b""
    with pytest.raises(RequestTooLargeError):
        await read(bodies_of(), Arrived(b"x" * (1 << 20) + b"x").receive)


def test_a_body_that_is_late_or_whose_client_has_left_is_waited_for() -> None:
    for late in (Arrived(b"x", more_body=True), Arrived(b"x", is_gone=True)):
        assert arrived_body(late.receive) is None
        assert late.cycle.body == b"x"
    assert arrived_body(pieces(0.0)) is None


async def test_the_wait_for_a_place_is_not_the_bodys_time() -> None:
    bodies, slow = bodies_of(), BODY_TIMEOUT_S * 0.4
    lengths = await asyncio.gather(*(read(bodies, pieces(0.0, slow, slow)) for _ in range(2)))
    assert lengths == [3 * PIECE] * 2


async def test_a_place_that_does_not_come_is_the_callers_own_limit() -> None:
    bodies = bodies_of()
    first = asyncio.create_task(read(bodies, pieces(0.0, 0.0), held_s=2 * PLACE_TIMEOUT_S))
    await asyncio.sleep(0.1)
    with pytest.raises(DeniedError, match="Too many large requests of yours"):
        await read(bodies, pieces(0.0, 0.0))
    await first


async def test_a_body_is_counted_until_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD_BODIES", 1)
    bodies = bodies_of(max_by_caller=100)
    size = 1 << 18
    held = [
        asyncio.create_task(read(bodies, pieces(0.0, 0.0, size=size), held_s=10.0))
        for _ in range(2)
    ]
    await asyncio.sleep(1.0)
    with pytest.raises(OverloadedError):
        await read(bodies, pieces(0.0, 0.0, size=size))
    assert await asyncio.gather(*held) == [2 * size] * 2
    assert await read(bodies, pieces(0.0, 0.0, size=size)) == 2 * size


@pytest.mark.parametrize(
    ("number", "num_bytes", "is_apart"),
    [
        (b"12345678901234567890123", LONG_NUMBERS_BYTES, True),
        (b"12345678901234567890123", LONG_NUMBERS_BYTES - 1, False),
        (b'"12345678901234567890123"', LONG_NUMBERS_BYTES, False),
        (b"1.5", LONG_NUMBERS_BYTES, False),
    ],
)
async def test_a_body_with_long_numbers_is_parsed_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, number: bytes, num_bytes: int, is_apart: bool
) -> None:
    bodies, apart = bodies_of(), list[bytes]()

    async def parse(body: bytes, *_: object) -> None:
        apart.append(body)

    monkeypatch.setattr(bodies._pool, "parse", parse)
    head = b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + number
    body = head + b" " * (num_bytes - len(head) - 1) + b"}"
    assert len(body) == num_bytes
    await bodies.parse(body, b"caller", CHAT)
    assert apart == ([body] if is_apart else [])
