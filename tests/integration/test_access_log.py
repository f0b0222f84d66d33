"""A log line for every request: who asked for what, how it ended, and why it was refused."""

import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.http.connections import http_protocol
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Embed, Generate, OpenParse, Prepare
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

CHAT = "/v1/chat/completions"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of every access line."""
    return [
        record.__dict__["fields"] for record in caplog.records if record.name == "penstock.access"
    ]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.access")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_says_who_asked_for_what_and_what_it_took(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        gateway.client.headers["X-Request-ID"] = "mine-1"
        response = await gateway.chat(stream=stream)
        assert response.headers["x-request-id"] == "mine-1"
        request_id = response.headers["x-penstock-request-id"]
        assert engine.of(Generate)[0].request_id == request_id
    (line,) = lines(caplog)
    assert line.pop("duration_ms") >= line.pop("first_output_ms") >= 0
    assert line == {
        "request_id": request_id,
        "trace_id": "mine-1",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "address": "127.0.0.1",
        "key_id": "key-1",
        "model": "demo",
        "outcome": "finished",
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "cached_tokens": 1,
    }


async def refused(gateway: RunningGateway) -> None:
    """One request for each way to be refused without an engine."""
    client = gateway.client
    await client.get("/v1/nothing")
    await client.put("/health")
    await client.get("/live", headers={"Host": "evil.example"})
    await client.post(CHAT, content=b"x" * 3000, headers={"Content-Type": "application/json"})
    await client.post(CHAT, content=b"x", headers={"Content-Type": "text/plain"})
    await client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"})
    await gateway.chat(model="nope")


async def test_every_refusal_has_a_line_that_says_why(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir, max_body_bytes=2000) as gateway:
        await gateway.auth()
        await gateway.engine()
        await refused(gateway)
    told = [(one["route"], one["status"], one.get("error_code")) for one in lines(caplog)]
    assert told == [
        ("unknown", 404, "not_found"),
        ("/health", 405, "method_not_allowed"),
        ("unknown", 403, "permission_denied"),
        ("unknown", 413, "request_too_large"),
        (CHAT, 400, "invalid_request"),
        (CHAT, 400, "invalid_request"),
        (CHAT, 404, "model_not_found"),
    ]


async def test_a_denied_caller_is_named_as_far_as_it_is_known(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        await gateway.engine()
        await gateway.chat()
        gateway.client.headers["X-API-Key"] = "psk-secretsecret"
        auth.denial = ErrorCode.RATE_LIMIT_EXCEEDED
        await gateway.chat()
    first, second = lines(caplog)
    assert (first["status"], first["error_code"]) == (401, "invalid_api_key")
    assert (second["status"], second["error_code"]) == (429, "rate_limit_exceeded")
    assert "secret" not in caplog.text


async def test_a_client_that_leaves_has_a_line_too(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as leaving:
            leaving.writer.write(post())
            await engine.until(lambda: bool(engine.of(Generate)))
        await gateway.until(lambda: len(lines(caplog)) == 1)
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"], line["model"]) == (499, "aborted", "demo")


async def test_an_error_within_a_stream_stands_in_its_line(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir, request_timeout_s=3.0) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as reading:
            body = b'{"model":"demo","messages":[{"role":"user","content":"x"}],"stream":true}'
            reading.writer.write(post(body, b"Connection: close\r\n"))
            await engine.until(lambda: bool(engine.of(Generate)))
            engine.emit(engine.of(Generate)[0], "x")
            await reading.until_closed()
    (line,) = lines(caplog)
    assert (line["status"], line["outcome"]) == (200, "failed")
    assert line["error_code"] == "deadline_exceeded"
    assert line["first_output_ms"] >= 0


@pytest.mark.parametrize(
    ("sent", "method", "status", "error_code"),
    [
        (b"nonsense\r\n\r\n", "unknown", 400, "invalid_request"),
        (b"POST /live HTTP/1.1\r\nA: " + b"x" * 70_000, "POST", 431, "headers_too_large"),
        (b"GET /" + b"x" * 70_000, "GET", 431, "headers_too_large"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", "unknown", 400, "invalid_request"),
    ],
)
async def test_what_never_becomes_a_request_has_a_line_too(
    socket_dir: Path,
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    method: str,
    status: int,
    error_code: str,
) -> None:
    async with running_gateway(socket_dir) as gateway, connected(gateway) as odd:
        answer = await odd.until_closed(sent)
        metrics = gateway.application.metrics.render().decode()
    (line,) = lines(caplog)
    assert line.pop("duration_ms") >= 0
    assert b"x-penstock-request-id: " + line.pop("request_id").encode() in answer
    assert line == {
        "method": method,
        "route": "unknown",
        "status": status,
        "address": "127.0.0.1",
        "error_code": error_code,
    }
    assert f'http_requests_total{{route="unknown",status="{status}"}} 1.0' in metrics


async def test_a_request_that_breaks_off_has_one_line_and_is_counted_once(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with running_gateway(socket_dir) as gateway, connected(gateway) as odd:
        await gateway.auth()
        assert (await odd.until_closed(head + b"no length\r\n")).startswith(b"HTTP/1.1 400 ")
        await gateway.until(lambda: bool(lines(caplog)))
        metrics = gateway.application.metrics.render().decode()
    (line,) = lines(caplog)
    assert line["route"] == CHAT
    assert 'http_requests_total{route="unknown"' not in metrics


async def test_a_connection_too_many_has_a_line(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir, max_connections=1) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as busy:
            busy.writer.write(post())
            await engine.until(lambda: bool(engine.of(Generate)))
            async with connected(gateway) as late:
                assert (await late.until_closed(b"x")).startswith(b"HTTP/1.1 503 ")
            (line,) = lines(caplog)
    assert (line["status"], line["error_code"]) == (503, "overloaded")


async def test_half_a_head_that_takes_too_long_has_a_line(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.02)
    async with running_gateway(socket_dir) as gateway, connected(gateway) as slow:
        await slow.until_closed(b"GET /live HTTP/1.1\r\nA: b\r\nC")
    (line,) = lines(caplog)
    assert (line["method"], line["status"], line["error_code"]) == ("GET", 0, "head_timeout")


async def test_the_log_can_be_switched_off(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir, access_log=False) as gateway:
        await gateway.client.get("/live")
    assert lines(caplog) == []


async def test_the_clients_id_reaches_every_worker_and_is_no_key_there(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(
            tool_format="hermes", capabilities=("chat", "completions", "embeddings")
        )
        parser = await gateway.parser()
        client = gateway.client
        client.headers["X-Request-ID"] = "mine-1"
        tool = {"type": "function", "function": {"name": "f"}}
        await client.post(CHAT, json={"model": "demo", "messages": MESSAGES, "tools": [tool]})
        await client.post("/tokenize", json={"model": "demo", "prompt": "x"})
        await client.post("/v1/parse", json={"format": "hermes", "text": "x"})
        engine.is_mute = True
        async with connected(gateway) as leaving:
            data = post(b'{"model":"demo","input":"x"}', b"X-Request-ID: mine-1\r\n")
            leaving.writer.write(data.replace(CHAT.encode(), b"/v1/embeddings"))
            await engine.until(lambda: bool(engine.of(Embed)))
        for worker, kinds in (
            (auth, (Authorize,)),
            (engine, (Prepare, Generate, Embed)),
            (parser, (OpenParse,)),
        ):
            for kind in kinds:
                found = worker.of(kind)
                assert found
                assert {one.trace_id for one in found} == {"mine-1"}
                assert all("mine" not in one.request_id for one in found)
