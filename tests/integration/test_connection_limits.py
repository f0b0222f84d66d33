"""Connections of strangers: bounded by address and in all, and never in the outbox's way."""

import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.http import server
from gateway.http.connections import limits as connections
from gateway.http.connections.limits import RESERVED_DESCRIPTORS, ConnectionLimits
from protocol.wire.messages import Generate
from tests.fakes.raw_http import LIVE, answers, connected, error_code, post
from tests.fakes.running_gateway import running_gateway

CLOSE = b"Connection: close\r\n\r\n"


@contextmanager
def descriptors_used_up() -> Iterator[None]:
    """Let this process have no free descriptor meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 2, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)


async def test_idle_connections_make_room_for_a_newcomer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_connections=4) as gateway, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(gateway)) for _ in range(12)]
        async with connected(gateway) as newcomer:
            ((status, _),) = answers(await newcomer.until_closed(LIVE + CLOSE))
            assert status == 200
        # The oldest went; nobody was answered what he had not asked for.
        assert await idle[0].until_closed() == b""


async def test_busy_connections_are_left_alone_and_a_newcomer_is_told(socket_dir: Path) -> None:
    limits = {"max_connections": 2, "max_connections_per_address": 2}
    async with running_gateway(socket_dir, **limits) as gateway, AsyncExitStack() as stack:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        busy = [await stack.enter_async_context(connected(gateway)) for _ in range(2)]
        for one in busy:
            one.writer.write(post(headers=b"Connection: close\r\n"))
        await engine.until(lambda: len(engine.of(Generate)) == 2)
        async with connected(gateway) as newcomer:
            ((status, answer),) = answers(await newcomer.until_closed(LIVE + CLOSE))
            assert (status, error_code(answer)) == (503, "overloaded")
            assert b"retry-after: 1\r\n" in answer.lower()
        for generate in engine.of(Generate):
            engine.finish(generate)
        for one in busy:
            ((status, _),) = answers(await one.until_closed())
            assert status == 200


async def test_one_address_takes_no_places_of_others(socket_dir: Path) -> None:
    async with running_gateway(
        socket_dir, max_connections=64, max_connections_per_address=3
    ) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with AsyncExitStack() as stack:
            busy = [await stack.enter_async_context(connected(gateway)) for _ in range(3)]
            for one in busy:
                one.writer.write(post())
            await engine.until(lambda: len(engine.of(Generate)) == 3)
            async with connected(gateway) as newcomer:
                ((status, _),) = answers(await newcomer.until_closed(LIVE + CLOSE))
                assert status == 503
            async with connected(gateway, "127.0.0.2") as stranger:
                ((status, _),) = answers(await stranger.until_closed(LIVE + CLOSE))
                assert status == 200


async def test_a_proxy_that_is_trusted_has_the_places_of_all_its_clients(socket_dir: Path) -> None:
    async with (
        running_gateway(
            socket_dir,
            max_connections=64,
            max_connections_per_address=1,
            trusted_proxies=("127.0.0.0/8",),
        ) as gateway,
        AsyncExitStack() as stack,
    ):
        await gateway.auth()
        engine = await gateway.engine(text=None)
        for _ in range(5):
            one = await stack.enter_async_context(connected(gateway))
            one.writer.write(post())
        await engine.until(lambda: len(engine.of(Generate)) == 5)


async def test_places_are_given_back(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ConnectionLimits] = []

    def limits(*args: object) -> ConnectionLimits:
        made.append(ConnectionLimits(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(server, "ConnectionLimits", limits)
    async with running_gateway(socket_dir, max_connections=8) as gateway:
        for data in (LIVE + CLOSE, b"nonsense\r\n\r\n", LIVE + b"\r\n" + LIVE + CLOSE):
            async with connected(gateway) as one:
                await one.until_closed(data)
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(connected(gateway))
        await gateway.until(lambda: len(made[0]) == 0)
        assert not made[0]._idle
        assert not made[0]._by_address


async def test_settlements_are_written_when_clients_have_used_up_the_descriptors(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.acknowledges = False
        assert (await gateway.chat()).status_code == 200
        path = socket_dir / "data" / "gateway-outbox.jsonl"
        await gateway.until(lambda: path.stat().st_size > 0)
        before = path.stat().st_size
        with descriptors_used_up():
            # The client's connection is there already.
            assert (await gateway.chat()).status_code == 200
            await gateway.until(lambda: path.stat().st_size > before)
        assert (await gateway.client.get("/ready")).status_code == 200


def test_the_soft_limit_is_raised_and_some_descriptors_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 65_536))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert connections.raise_descriptor_limit() == 65_536
    assert asked == [(65_536, 65_536)]
    assert connections.default_max_connections(65_536) == 65_536 - RESERVED_DESCRIPTORS
