"""Clients that leave where nothing is read from them, and connections in the middle of a
pipeline."""

import asyncio
from pathlib import Path

import pytest

from gateway.http.bodies import reading as bodies
from gateway.http.connections import http_protocol
from protocol.wire.messages import Abort, Generate
from tests.fakes.raw_http import LIVE, answers, connected, error_code, post
from tests.fakes.running_gateway import running_gateway

CLOSE = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize("tail", [LIVE + b"\r\n", b"\x00\x01garbage\r\n\r\n"])
async def test_a_client_that_leaves_behind_a_later_packet_ends_its_request(
    socket_dir: Path, tail: bytes
) -> None:
    async with running_gateway(socket_dir) as gateway:
        engine = await gateway.engine(text=None)
        await gateway.auth()
        async with connected(gateway) as client:
            client.writer.write(post())
            await engine.until(lambda: bool(engine.of(Generate)))
            client.writer.write(tail)
            await client.writer.drain()
        await engine.until(lambda: bool(engine.of(Abort)))


async def test_a_pipelined_request_that_runs_is_not_idle(socket_dir: Path) -> None:
    limits = {"max_connections": 1, "max_connections_per_address": 1}
    async with running_gateway(socket_dir, **limits) as gateway:
        engine = await gateway.engine(text=None)
        await gateway.auth()
        async with connected(gateway) as client:
            client.writer.write(LIVE + b"\r\n" + post())
            await engine.until(lambda: bool(engine.of(Generate)))
            async with connected(gateway) as newcomer:
                ((status, _),) = answers(await newcomer.until_closed(LIVE + CLOSE))
                assert status == 503
            assert not engine.of(Abort)
            assert len(gateway.application.sessions) == 1


async def test_a_head_without_its_body_holds_no_place_for_ever(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.2)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with connected(gateway) as stranger:
            ((status, rest),) = answers(await stranger.until_closed(post(b"", length=100)))
            assert (status, error_code(rest)) == (400, "invalid_request")


async def test_an_empty_line_is_no_reason_to_stay(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with running_gateway(socket_dir) as gateway, connected(gateway) as client:
        client.writer.write(LIVE + b"\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        assert b"HTTP/1.1" not in await client.until_closed(b"\r\n")
        await asyncio.sleep(0)
