"""What clients do to a connection: odd heads, slow bodies, pipelines, upgrades, early ends."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.http.bodies import reading as bodies
from gateway.http.connections import arrival, http_protocol
from protocol.wire.messages import Abort, Generate
from tests.fakes.raw_http import LIVE, answers, connected, error_code, post
from tests.fakes.running_gateway import running_gateway


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 hello TLS\r\n\r\n",
        b"GET live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        post(headers=b"Transfer-Encoding: chunked\r\n"),
    ],
)
async def test_what_is_no_http_gets_an_error_of_openais_shape(
    socket_dir: Path, data: bytes
) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        ((status, answer),) = answers(await connection.until_closed(data))
        assert (status, error_code(answer)) == (400, "invalid_request")


@pytest.mark.parametrize("start", [LIVE + b"X-A: ", LIVE, b"GET /"])
async def test_a_head_without_end_is_refused(socket_dir: Path, start: bytes) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        connection.writer.write(start)
        line = b"X-B: b\r\n" if start is LIVE else b"a" * 8
        answer = await connection.until_closed(line * (2 * http_protocol.MAX_HEAD_BYTES // 8))
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert error_code(answer) == "headers_too_large"


async def test_trailers_without_end_close_the_connection(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        connection.writer.write(post().split(b"Content-Length")[0])
        connection.writer.write(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        answer = await connection.until_closed(b"X-B: b\r\n" * 2**16)
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_trailers_change_no_header(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        head = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        trailer = b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Request-ID: forged\r\n\r\n"
        ((status, answer),) = answers(await connection.until_closed(head + trailer))
        assert status == 200
        assert b"forged" not in answer


async def test_a_head_that_does_not_arrive_ends_the_connection(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "ARRIVAL_TIMEOUT_S", 0.02)
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.02)
    async with running_gateway(socket_dir) as gateway:
        async with connected(gateway) as silent:
            assert await silent.until_closed() == b""
        async with connected(gateway) as slow:
            assert await slow.until_closed(LIVE) == b""
        async with connected(gateway) as fast:
            answer = await fast.until_closed(LIVE + b"Connection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_does_not_arrive_is_an_error(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.02)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as slow:
            slow.writer.write(post(b"{", b"Connection: close\r\n", length=100))
            ((status, answer),) = answers(await slow.until_closed())
            assert (status, error_code(answer)) == (400, "invalid_request")
        # The limit is that of the body alone: an answer may take longer.
        async with connected(gateway) as fast:
            fast.writer.write(post(headers=b"Connection: close\r\n"))
            await engine.until(lambda: len(engine.of(Generate)) == 1)
            await asyncio.sleep(0.05)
            engine.finish(engine.of(Generate)[0])
            ((status, _),) = answers(await fast.until_closed())
            assert status == 200


async def test_a_caller_with_many_slow_bodies_holds_up_only_its_own_bodies(
    socket_dir: Path,
) -> None:
    size = bodies.SMALL_BYTES + 2000
    async with running_gateway(socket_dir, max_bodies_per_caller=2) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with AsyncExitStack() as stack:
            many = [await stack.enter_async_context(connected(gateway)) for _ in range(8)]
            for one in many:
                one.writer.write(post(b"x" * (size - 1000), length=size))
            turns = gateway.application.parts.bodies._large
            await gateway.until(lambda: sum(map(len, turns._waiting.values())) == 6)
            # A body of a usual size needs no place, whoever sends it.
            assert (await gateway.chat()).status_code == 200
        await gateway.until(lambda: not turns._waiting and not turns._held)


async def test_an_upgrade_to_http_2_is_ignored_and_the_body_is_read(socket_dir: Path) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with connected(gateway) as connection:
            # Byte by byte first, then with the next request right behind.
            for byte in post(headers=upgrade):
                connection.writer.write(bytes([byte]))
                await connection.writer.drain()
            data = await connection.until_closed(
                post(headers=upgrade) + LIVE + b"Connection: close\r\n\r\n"
            )
            assert [status for status, _ in answers(data)] == [200, 200, 200]
            assert data.count(b"Hello, world") == 2


async def test_who_asks_before_sending_too_much_is_refused_at_once(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        head = post(b"", b"Expect: 100-continue\r\n", length=10**9)
        ((status, answer),) = answers(await connection.until_closed(head))
        assert (status, error_code(answer)) == (413, "request_too_large")


async def test_a_compressed_body_is_refused_by_name(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        response = await gateway.client.post(
            "/v1/chat/completions",
            content=b"\x1f\x8b\x08",
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        )
        assert response.status_code == 400
        assert "gzip" in response.json()["error"]["message"]


async def test_a_client_that_leaves_ends_its_request_though_another_waits_behind_it(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as connection:
            connection.writer.write(post() + LIVE + b"\r\n")
            await engine.until(lambda: len(engine.of(Generate)) == 1)
        await engine.until(lambda: len(engine.of(Abort)) == 1)


async def test_a_client_that_leaves_after_a_large_last_piece_ends_its_request(
    socket_dir: Path,
) -> None:
    text = "x" * 90_000
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": text}]}).encode()
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as connection:
            connection.writer.write(post(body[:1000], length=len(body)))
            await connection.writer.drain()
            await gateway.client.get("/live")  # the first piece has been read now
            connection.writer.write(body[1000:])
            await engine.until(lambda: len(engine.of(Generate)) == 1)
        await engine.until(lambda: len(engine.of(Abort)) == 1)


async def test_a_client_that_leaves_after_a_large_body_in_one_piece_ends_its_request(
    socket_dir: Path,
) -> None:
    text = "x" * 150_000  # beyond what uvicorn reads before it stops reading a connection
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": text}]}).encode()
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as connection:
            connection.writer.write(post(body, length=len(body)))
            await engine.until(lambda: len(engine.of(Generate)) == 1)
        await engine.until(lambda: len(engine.of(Abort)) == 1)


async def test_garbage_behind_a_request_does_not_land_in_its_answer(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as connection:
            connection.writer.write(post() + b"\x00garbage\r\n\r\n")
            await engine.until(lambda: len(engine.of(Generate)) == 1)
            engine.emit(engine.of(Generate)[0], "fine")
            engine.finish(engine.of(Generate)[0])
            ((status, answer),) = answers(await connection.until_closed())
            assert status == 200
            assert b'"content":"fine"' in answer


async def test_of_many_pipelined_requests_few_are_parsed_ahead_and_all_are_answered(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[http_protocol.BoundedHttpProtocol] = []
    most = 0
    on_headers_complete = http_protocol.BoundedHttpProtocol.on_headers_complete

    def watched(protocol: http_protocol.BoundedHttpProtocol) -> None:
        nonlocal most
        on_headers_complete(protocol)
        made[:] = [protocol]
        most = max(most, len(protocol.pipeline))

    monkeypatch.setattr(http_protocol.BoundedHttpProtocol, "on_headers_complete", watched)
    large = post(b'{"model": "none", "messages": "%b"}' % (b"x" * 100_000))
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as client:
            requests = [post(), *[LIVE + b"\r\n"] * 2000, large, *[LIVE + b"\r\n"] * 100, post()]
            client.writer.write(b"".join(requests))
            await engine.until(lambda: len(engine.of(Generate)) == 1)
            assert made[0].pipeline
            engine.finish(engine.of(Generate)[0])
            await engine.until(lambda: len(engine.of(Generate)) == 2)
            # It began behind an answer; the time of an idle connection doesn't go on meanwhile.
            assert made[0].timeout_keep_alive_task is None
            engine.finish(engine.of(Generate)[1])
            last = LIVE + b"Connection: close\r\n\r\n"
            found = [status for status, _ in answers(await client.until_closed(last))]
    assert found == [200] * 2001 + [400] + [200] * 102
    assert 0 < most <= http_protocol._PIECE_BYTES // len(LIVE) + 1


async def test_what_is_no_http_ends_a_pipeline_after_its_answers(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        data = (LIVE + b"\r\n") * 300 + b"nonsense\r\n\r\n" + (LIVE + b"\r\n") * 300
        found = [status for status, _ in answers(await connection.until_closed(data))]
        assert found[:300] == [200] * 300
        assert found[300:] in ([], [400])
