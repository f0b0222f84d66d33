"""Attacks with connections: idle, half open, in storms, flooding, pipelined, and never read."""

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tests.attack.raw_http import Connection, head, post, source_address
from tests.attack.target import CHAT, MODEL, Target

_OWN_DESCRIPTORS: Final = 256
_OPENING_AT_A_TIME: Final = 64
_FLOOD_PER_S: Final = 500
_MAX_WAITING: Final = 512
_PIPELINE: Final = 100
_UNREAD_STREAMS: Final = 50
_SMALL_BUFFER_BYTES: Final = 4096
_MESSAGE = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
ODD_ROUTES: Final = (
    ("HEAD", "/live"),
    ("HEAD", "/v1/models"),
    ("PUT", CHAT),
    ("PATCH", "/health"),
    ("DELETE", "/v1/models"),
    ("OPTIONS", "*"),
    ("OPTIONS", CHAT),
    ("TRACE", "/live"),
    ("GET", "/no/such/route"),
    ("GET", "/v1/models/" + "a/" * 200),
    ("POST", "/v1/unknown"),
    ("GET", "//live"),
    ("GET", "/%2e%2e/live"),
    ("BREW", "/live"),
)


def idle(
    size: int, *, spread: bool, first: bytes = b""
) -> Callable[[Target], Coroutine[Any, Any, None]]:
    """So many connections that say nothing more than `first`, from one address or from fifty."""

    async def run(target: Target) -> None:
        wanted = min(size, _raise_descriptor_limit() - _OWN_DESCRIPTORS)
        if wanted < size:
            target.outcome.notes.append(f"{wanted} connections: this machine allows no more")
        opened: list[Connection] = []
        gate = asyncio.Semaphore(_OPENING_AT_A_TIME)

        async def one(number: int) -> None:
            async with gate, asyncio.timeout(target.seconds):
                source = source_address(number if spread else 0)
                connection = await Connection.open(target.port, source)
                opened.append(connection)
                if first:
                    await connection.send(first)

        try:
            await target.together(one(number) for number in range(wanted))
            await target.rest()
            closed = sum(connection.reader.at_eof() for connection in opened)
            target.outcome.counts["opened"] = len(opened)
            target.outcome.counts["closed by the server"] = closed
        finally:
            for connection in opened:
                connection.close()

    return run


def half_a_head() -> bytes:
    """A head that goes on."""
    return head("POST", CHAT, "psk-half", 10)[:-2] + b"X-More: " + b"m" * 1000


def _raise_descriptor_limit() -> int:
    """As many descriptors as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def storm(target: Target) -> None:
    """Connect and close, politely or by a reset, before or within a head, as fast as it goes."""

    async def one(number: int, source: str) -> None:
        connection = await Connection.open(target.port, source)
        target.outcome.counts["connected"] += 1
        way = target.rng.randrange(4)
        if way > 1:
            await connection.send(half_a_head()[: target.rng.randrange(1, 200)])
        if way % 2:
            connection.reset()
        else:
            connection.close()

    await target.crowd(16, one)


async def flood_of_unknown_keys(target: Target) -> None:
    """Five hundred chats a second, each with another made-up key."""
    waiting: set[asyncio.Task[Any]] = set()
    number = 0
    while not target.is_over:
        if len(waiting) < _MAX_WAITING:
            request = post(CHAT, _MESSAGE, target.stranger())
            asking = target.ask(request, "a made-up key", source_address(number))
            task = asyncio.ensure_future(asking)
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        else:
            target.outcome.counts["not sent, 512 unanswered"] += 1
        number += 1
        await asyncio.sleep(1 / _FLOOD_PER_S)
    await asyncio.gather(*waiting)


async def pipelines(target: Target) -> None:
    """A hundred requests in one write, with and without keys, read or not."""
    lines = (
        head("GET", "/v1/models", target.key),
        head("GET", "/v1/models", "psk-made-up"),
        head("GET", "/live"),
        post(CHAT, _MESSAGE, "psk-made-up"),
    )

    async def one(number: int, source: str) -> None:
        connection = await Connection.open(target.port, source)
        try:
            async with asyncio.timeout(20):
                await connection.send(lines[number % len(lines)] * _PIPELINE)
                if number % 3:
                    for _ in range(_PIPELINE):
                        target.outcome.take(await connection.answer(), "a pipeline")
                else:
                    await asyncio.sleep(0.2)
                    target.outcome.counts["left unread"] += 1
        finally:
            connection.close()

    await target.crowd(6, one)


async def odd_routes(target: Target) -> None:
    """Methods and paths that are not there."""

    async def one(number: int, source: str) -> None:
        method, path = target.rng.choice(ODD_ROUTES)
        await target.ask(head(method, path, length=0), f"{method} {path[:40]}", source)

    await target.crowd(8, one)


def long_stream() -> dict[str, Any]:
    """A chat whose answer has sixty thousand tokens."""
    return _MESSAGE | {"stream": True, "max_tokens": 60_000, "ignore_eos": True}


async def unread_streams(target: Target) -> None:
    """Fifty long streams whose clients never read, with buffers that are full at once."""
    request = post(CHAT, long_stream(), target.key)

    async def one(number: int) -> None:
        connection = await Connection.open(
            target.port, source_address(number), receive_buffer_bytes=_SMALL_BUFFER_BYTES
        )
        try:
            await connection.send(request)
            await target.rest()
            target.outcome.counts["streams"] += 1
        finally:
            connection.reset()

    await target.together(one(number) for number in range(_UNREAD_STREAMS))
