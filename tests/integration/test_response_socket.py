"""/v1/responses over a WebSocket: turns, what a connection remembers, and clients that
misbehave."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import websockets
from openai.types.responses import ResponseSteerFailedEvent
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.http.answers import response_socket
from gateway.http.bodies.parsers import SOCKET
from gateway.http.bodies.reading import OFF_LOOP_BYTES, SMALL_BYTES
from gateway.http.connections import websocket
from gateway.http.connections.socket_buffers import SocketBuffer
from protocol.errors import ErrorCode
from protocol.wire.messages import Generate, Prepare
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.raw_http import connected
from tests.fakes.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.asyncio
WEB = {"type": "web_search"}
OPEN = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\n"
    b"connection: Upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir, max_body_bytes=10_000) as gateway:
        await gateway.auth()
        await gateway.engine(text=("Hello", ", world"))
        yield gateway


def engine_of(gateway: RunningGateway) -> FakeEngine:
    (engine,) = [one for one in gateway.workers if isinstance(one, FakeEngine)]
    return engine


def opened(gateway: RunningGateway, **options: Any) -> connect:
    url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
    return connect(url, proxy=None, **options)


async def turn(socket: ClientConnection, **fields: Any) -> list[dict[str, Any]]:
    """The frames that answer one `response.create`."""
    body = {"type": "response.create", "model": "demo", "input": "hi", **fields}
    await socket.send(json.dumps(body))
    return await frames(socket)


async def frames(socket: ClientConnection) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    ends = ("response.completed", "response.incomplete", "response.failed")
    while not found or (found[-1]["type"] not in ends and "status" not in found[-1]):
        found.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
    return found


def code_of(told: list[dict[str, Any]]) -> tuple[int, str]:
    (error,) = told
    assert error["type"] == "error"
    return error["status"], error["error"]["code"]


def read_by_engine(gateway: RunningGateway) -> list[str]:
    prepare = engine_of(gateway).of(Prepare)[-1]
    return [one["content"] for one in json.loads(prepare.messages_json)]


async def test_turns_follow_each_other_on_one_connection(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        for _ in range(2):
            told = await turn(socket, stream=True)
            assert [event["sequence_number"] for event in told] == list(range(len(told)))
            assert told[0]["type"] == "response.created"
            assert told[-1]["response"]["output"][0]["content"][0]["text"] == "Hello, world"
        fetched = await gateway.client.get(f"/v1/responses/{told[-1]['response']['id']}")
        assert fetched.json() == told[-1]["response"]


async def test_what_is_not_stored_is_continued_on_its_connection_only(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway) as socket, opened(gateway) as other:
        first = (await turn(socket, store=False))[-1]["response"]
        told = await turn(other, previous_response_id=first["id"], store=False)
        assert code_of(told) == (400, "previous_response_not_found")
        assert (await turn(other))[-1]["type"] == "response.completed"
        second = await turn(socket, input="more", previous_response_id=first["id"], store=False)
        assert second[-1]["type"] == "response.completed"
        assert read_by_engine(gateway) == ["hi", "Hello, world", "more"]
        # Stored behind what isn't: the store then knows all of it.
        third = (await turn(socket, input="!", previous_response_id=second[-1]["response"]["id"]))[
            -1
        ]["response"]
        body = {"model": "demo", "input": "?", "previous_response_id": third["id"]}
        assert (await gateway.client.post("/v1/responses", json=body)).status_code == 200
        assert read_by_engine(gateway)[:3] == ["hi", "Hello, world", "more"]


async def test_a_continuation_that_fails_is_forgotten(gateway: RunningGateway) -> None:
    orphan = [{"type": "function_call_output", "call_id": "none", "output": "x"}]
    async with opened(gateway) as socket:
        first = (await turn(socket, store=False))[-1]["response"]
        wrong = await turn(socket, input=orphan, previous_response_id=first["id"], store=False)
        assert code_of(wrong) == (400, "invalid_request")
        again = await turn(socket, previous_response_id=first["id"], store=False)
        assert code_of(again) == (400, "previous_response_not_found")


async def test_a_bug_that_one_message_meets_is_nothing_to_the_next(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> Any:
        raise TypeError("unhashable")

    async with opened(gateway) as socket:
        with monkeypatch.context() as patch:
            patch.setattr(response_socket, "SOCKET", replace(SOCKET, parse=bug))
            assert code_of(await turn(socket)) == (500, "internal_error")
        assert code_of(await turn(socket, input=[{"type": []}])) == (400, "invalid_request")
        assert (await turn(socket))[-1]["type"] == "response.completed"


async def test_a_response_without_output_is_continued(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        told = await turn(socket, input="ahead", generate=False, store=False)
        assert told[-1]["response"]["output"] == []
        assert engine_of(gateway).of(Generate) == []
        name = told[-1]["response"]["id"]
        await turn(socket, input="now", previous_response_id=name, store=False)
        assert read_by_engine(gateway) == ["ahead", "now"]


async def test_lanes_have_their_events_and_may_be_continued_by_others(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway) as socket:
        first = await turn(socket, stream_id="a", store=False, input="one")
        second = await turn(socket, stream_id="b", store=False, input="two")
        for lane, told in (("a", first), ("b", second)):
            assert {event["stream_id"] for event in told} == {lane}
        # The first lane's response is remembered beside the second's, and forks into a third.
        name = first[-1]["response"]["id"]
        fork = await turn(socket, stream_id="c", store=False, previous_response_id=name)
        assert fork[-1]["type"] == "response.completed"
        assert read_by_engine(gateway) == ["one", "Hello, world", "hi"]
        assert "stream_id" not in (await turn(socket))[0]
        for wrong in ({"temperature": 9}, {"previous_response_id": "resp_none"}):
            (error,) = await turn(socket, stream_id="b", **wrong)
            assert (error["type"], error["stream_id"]) == ("error", "b")
        (error,) = await turn(socket, stream_id="")
        assert (error["status"], error["error"]["param"]) == (400, "stream_id")


async def test_an_error_of_a_large_message_has_its_lane(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with opened(gateway) as socket:
            # Read on the loop, and by a process of its own.
            for size in (SMALL_BYTES, OFF_LOOP_BYTES):
                large = {"input": "x" * size, "stream_id": "a"}
                for wrong in ({"temperature": "hot"}, {"background": True}):
                    (error,) = await turn(socket, **large, **wrong)
                    assert (error["status"], error["error"]["param"]) == (400, *wrong)
                    assert error["stream_id"] == "a"


async def test_what_has_become_too_large_is_forgotten_and_not_what_it_goes_on_from(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, store_max_context_bytes=2000) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with opened(gateway) as socket:
            first = await turn(socket, stream_id="a", store=False, input="one")
            more = {"store": False, "previous_response_id": first[-1]["response"]["id"]}
            large = await turn(socket, stream_id="b", input="x" * 2000, **more)
            assert large[-1]["type"] == "response.completed"
            assert (await turn(socket, stream_id="c", **more))[-1]["type"] == "response.completed"
            name = large[-1]["response"]["id"]
            (error,) = await turn(socket, store=False, previous_response_id=name)
            assert error["error"]["code"] == "previous_response_not_found"


async def test_fields_without_an_effect_are_listed_in_the_first_event(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway) as socket:
        for generate in (True, False):
            first, *others = await turn(socket, nonsense=1, tools=[WEB], generate=generate)
            assert first["ignored_fields"] == ["nonsense", "tools[0]"]
            assert not any("ignored_fields" in event for event in others)
        assert "ignored_fields" not in (await turn(socket))[0]


async def test_steering_is_refused_by_the_name_of_its_own_error(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        asked = {"input": "shorter", "previous_response_id": "resp_1"}
        await socket.send(json.dumps({"type": "response.steer", **asked}))
        told = json.loads(await asyncio.wait_for(socket.recv(), 60))
        event = ResponseSteerFailedEvent.model_validate(told)
        assert event.error.code == "steering_not_supported"
        assert told["steer"] == asked
        assert (await turn(socket))[-1]["type"] == "response.completed"


async def test_what_is_prepared_ahead_is_bounded(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, store_max_context_bytes=2000) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with opened(gateway) as socket:
            fields = {"input": "x" * 1200, "generate": False, "store": False}
            told = await turn(socket, **fields)
            name = told[-1]["response"]["id"]
            (refused,) = await turn(socket, **fields, previous_response_id=name)
            assert refused["status"] == 400
            assert refused["error"]["param"] == "input"
            assert "PENSTOCK_STORE_MAX_CONTEXT_BYTES" in refused["error"]["message"]
            # The connection goes on.
            assert (await turn(socket))[-1]["type"] == "response.completed"


async def test_a_large_message_waits_for_those_of_its_caller(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_bodies_per_caller=1) as gateway:
        await gateway.auth()
        await gateway.engine()
        bodies = gateway.application.bodies
        waiting = asyncio.Event()
        take = bodies._large.take

        async def noticed(caller: bytes) -> None:
            waiting.set()
            await take(caller)

        bodies._large.take = noticed  # type: ignore[method-assign]
        async with opened(gateway) as socket:
            callers: list[bytes] = []
            place = bodies.place

            def seen(caller: bytes) -> Any:
                callers.append(caller)
                return place(caller)

            bodies.place = seen  # type: ignore[method-assign]
            await turn(socket, input="small")
            assert not waiting.is_set()
            with place(callers[0]) as held:
                await bodies.hold(b"x" * 100_000, held)
                waiting.clear()
                answering = asyncio.create_task(turn(socket, input="x" * 100_000))
                await waiting.wait()
                assert engine_of(gateway).of(Prepare)[1:] == []
            assert (await answering)[-1]["type"] == "response.completed"
        assert bodies._num_held_bytes == 0


async def test_sockets_of_one_caller_hold_no_more_than_its_bodies_may(socket_dir: Path) -> None:
    size, num_sockets = 1_000_000, 8
    async with running_gateway(socket_dir, max_body_bytes=size, max_bodies_per_caller=1) as gateway:
        await gateway.auth()
        await gateway.engine()
        sockets = gateway.application.bodies.sockets
        most, hold = 0, sockets.hold

        def seen(buffer: SocketBuffer, num_bytes: int) -> None:
            nonlocal most
            hold(buffer, num_bytes)
            most = max(most, sum(one.num_bytes for one in sockets._callers.values()))

        sockets.hold = seen  # type: ignore[method-assign]
        async with AsyncExitStack() as stack:
            opened_ones = [
                await stack.enter_async_context(opened(gateway)) for _ in range(num_sockets)
            ]
            # Longer than any model's context, so each is refused as soon as it is read.
            told = await asyncio.gather(
                *(turn(socket, input="x" * (size - 1000)) for socket in opened_ones)
            )
        assert all(len(one) for one in told)
        # The bound, the first one's message, and a read of the event loop each.
        assert size <= most <= 2 * size + num_sockets * 2**18 + 10_000 < num_sockets * size
        assert not sockets._callers


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("{", None),
        ("[]", None),
        ('{"type": "novel"}', "type"),
        ('{"type": 1}', "type"),
        ('{"type": "response.create", "model": "demo"}', "input"),
        (
            '{"type": "response.create", "model": "demo", "input": "x", "background": true}',
            "background",
        ),
    ],
)
async def test_a_wrong_message_is_refused_and_the_connection_goes_on(
    gateway: RunningGateway, message: str, param: str | None
) -> None:
    async with opened(gateway) as socket:
        await socket.send(message)
        (told,) = await frames(socket)
        assert (told["status"], told["error"]["param"]) == (400, param)
        await socket.send('{"type": "response.processed", "response_id": "resp_1"}')
        assert (await turn(socket))[-1]["type"] == "response.completed"


async def test_a_response_that_fails_midway_ends_as_a_stream_does(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = None
    async with opened(gateway) as socket:
        answer = asyncio.get_running_loop().create_task(turn(socket))
        await engine.until(lambda: bool(engine.of(Generate)))
        generate = engine.of(Generate)[0]
        engine.emit(generate, "Hel")
        engine.fail(generate, ErrorCode.INTERNAL_ERROR)
        told = await answer
        assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]


async def test_a_client_that_leaves_ends_its_response(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = None
    (auth,) = [one for one in gateway.workers if isinstance(one, FakeAuth)]
    async with opened(gateway) as socket:
        await socket.send('{"type": "response.create", "model": "demo", "input": "x"}')
        await engine.until(lambda: bool(engine.of(Generate)))
    await auth.until(lambda: [one.outcome for one in auth.settled()] == ["aborted"])


async def test_a_flood_of_messages_waits_its_turn(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        for number in range(100):
            body = {"type": "response.create", "model": "demo", "input": f"{number}"}
            await socket.send(json.dumps({**body, "store": False}))
        for _ in range(100):
            assert (await frames(socket))[-1]["type"] == "response.completed"
    assert read_by_engine(gateway) == ["99"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x05hello", 1002),  # without a mask
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # no such opcode
        (b"\x80\x80\0\0\0\0", 1002),  # goes on from nothing
        (b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0", 1002),  # a message within a message
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in pieces
        (b"\x89\xfe\x01\x00\0\0\0\0", 1002),  # a long ping
        (b"\x82\x80\0\0\0\0", 1003),  # bytes
        (b"\x81\x81\0\0\0\0\xff", 1007),  # no UTF-8
        (b"\x81\xfe\x4e\x20\0\0\0\0", 1009),  # larger than a body may be
        (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),
        (b"\x01\xfe\x20\x00\0\0\0\0" + b"x" * 0x2000 + b"\x80\xfe\x20\x00\0\0\0\0", 1009),
        (b"\x89\x80\0\0\0\0" * 65, 1008),  # pings and nothing else
        (b"\x88\x80\0\0\0\0", 1000),
    ],
)
async def test_what_breaks_the_protocol_is_closed_with_its_code(
    gateway: RunningGateway, sent: bytes, code: int
) -> None:
    async with connected(gateway) as connection:
        connection.writer.write(OPEN)
        head = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 §1.3
        rest = await connection.until_closed(sent)
        assert code.to_bytes(2, "big") in rest
        assert b"\x88" in rest


async def test_who_answers_no_ping_is_gone(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_INTERVAL_S", 0.05)
    async with connected(gateway) as connection:
        rest = await connection.until_closed(OPEN)
    assert rest.endswith(b"This server is shutting down.") or b"\x89\x00" in rest


async def test_a_connection_is_open_for_so_long(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_socket, "MAX_OPEN_S", 0.05)
    async with opened(gateway) as socket:
        told = json.loads(await asyncio.wait_for(socket.recv(), 60))
        assert told["error"]["code"] == "websocket_connection_limit_reached"
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001


async def test_without_an_upgrade_it_is_refused(gateway: RunningGateway) -> None:
    answer = await gateway.client.get("/v1/responses")
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_required")
    key = base64.b64encode(b"short").decode()
    for wrong in ({"sec-websocket-version": "8"}, {"sec-websocket-key": key}, {"upgrade": "h2c"}):
        headers = {
            "upgrade": "websocket",
            "connection": "upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": base64.b64encode(b"x" * 16).decode(),
            **wrong,
        }
        assert (await gateway.client.get("/v1/responses", headers=headers)).status_code == 426
    for path in ("/v1/models", "/live"):
        headers = {"upgrade": "websocket", "connection": "upgrade"}
        assert (await gateway.client.get(path, headers=headers)).status_code == 200


async def test_a_foreign_page_and_a_stranger_are_refused_before_the_upgrade(
    gateway: RunningGateway, socket_dir: Path
) -> None:
    with pytest.raises(InvalidStatus) as foreign:
        async with opened(gateway, origin=websockets.Origin("https://example.com")):
            pass
    assert foreign.value.response.status_code == 403
    other = socket_dir / "keys"
    other.mkdir()
    async with running_gateway(other, require_keys=True) as strict:
        auth = await strict.auth(allow_anonymous=False)
        auth.good_keys = ("psk-good",)
        await strict.engine()
        for headers in ({}, {"Authorization": "Bearer psk-bad"}):
            with pytest.raises(InvalidStatus) as stranger:
                async with opened(strict, additional_headers=headers):
                    pass
            assert stranger.value.response.status_code == 401
        good = {"Authorization": "Bearer psk-good"}
        async with opened(strict, additional_headers=good) as socket:
            assert (await turn(socket))[-1]["type"] == "response.completed"
            # A handshake has no body that could be looked at before its key.
            for length in ("0", "2"):
                headers = {"X-API-Key": "psk-wrong", "Content-Length": length}
                with pytest.raises(InvalidStatus) as refused:
                    await opened(strict, additional_headers=headers)
                assert refused.value.response.status_code == 401, length
            auth.good_keys = ()  # revoked: the next turn is refused
            assert code_of(await turn(socket)) == (401, "invalid_api_key")
