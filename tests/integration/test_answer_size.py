"""Answers that would be too large, and readers that take nothing."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.http.render.answer import ChatCollector
from gateway.request.preparation.prompts import WINDOW
from protocol.wire.messages import Abort, Authorize, Generate, Prepare, Usage
from tests.fakes.fake_workers import FakeEngine, extended_tokens
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway


async def ask(gateway: RunningGateway, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    response = await gateway.client.post(path, json={"model": "demo", **fields})
    return response.status_code, response.json()


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (
            "/v1/completions",
            {"prompt": ["x"] * 128, "echo": True, "logprobs": 20, "max_tokens": 0},
            "logprobs",
        ),
        (
            "/v1/chat/completions",
            {
                "messages": MESSAGES,
                "n": 64,
                "max_tokens": 400,
                "logprobs": True,
                "top_logprobs": 20,
            },
            "logprobs",
        ),
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 64, "max_tokens": 4000}, "n"),
        ("/v1/completions", {"prompt": "x", "best_of": 64, "n": 1, "max_tokens": 4000}, "n"),
    ],
)
async def test_an_answer_that_is_too_large_is_refused_before_anything_is_generated(
    socket_dir: Path, path: str, fields: dict[str, Any], param: str
) -> None:
    async with running_gateway(socket_dir, max_answer_bytes=100_000) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        status, body = await ask(gateway, path, **fields)
        error = body["error"]
        assert (status, error["code"], error["param"]) == (400, "invalid_request", param)
        assert "over this server's limit of 100000 (PENSTOCK_MAX_ANSWER_BYTES)" in error["message"]
        assert engine.of(Generate) == []
        # What was reserved is given back.
        granted = [one.request_id for one in auth.of(Authorize)]
        await auth.until(lambda: len(auth.settled()) == len(granted))
        assert engine.of(Prepare)


async def test_of_many_prompts_only_those_are_tokenised_that_show_it(socket_dir: Path) -> None:
    fields = {"prompt": ["x"] * 128, "echo": True, "logprobs": 20, "max_tokens": 0}
    async with running_gateway(socket_dir, max_answer_bytes=100_000) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        status, _ = await ask(gateway, "/v1/completions", **fields)
        assert status == 400
        # 16 of them would be answered with more, and as many may be on their way.
        assert len(engine.of(Prepare)) <= 16 + WINDOW


def has_more(engine: FakeEngine, num_tokens: int) -> bool:
    """Whether a lease grew beyond so many tokens."""
    return any(tokens > num_tokens for tokens in extended_tokens(engine))


async def test_a_stream_that_nobody_reads_gets_no_more_tokens(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, lease_slice_tokens=64, request_timeout_s=30) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        async with connected(gateway) as lazy:
            lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]
            body = b'{"model":"demo","messages":[{"role":"user","content":"x"}],"stream":true}'
            lazy.writer.write(post(body))
            await engine.until(lambda: bool(engine.of(Generate)))
            (generate,) = engine.of(Generate)
            lease = generate.lease_tokens
            num_sent = 0
            while True:
                # An engine makes what its lease allows; large pieces fill the socket soon.
                room = lease - num_sent
                for _ in range(room):
                    engine.emit(generate, "y" * 8192)
                num_sent += room
                try:
                    async with asyncio.timeout(1.0):
                        await engine.until(partial(has_more, engine, num_sent))
                except TimeoutError:
                    break
                lease = extended_tokens(engine)[-1]
                assert num_sent < 20_000, "it would go on for ever"
        await engine.until(lambda: bool(engine.of(Abort)))


async def test_others_are_served_while_log_probabilities_are_written(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer of 135 MB left everybody without service for 25 s."""
    begun, may_end = threading.Event(), threading.Event()
    body = ChatCollector.body

    def slow(collector: ChatCollector, usage: Usage) -> bytes:
        if collector._options.shows_logprobs:
            begun.set()
            assert may_end.wait(60)
        return body(collector, usage)

    monkeypatch.setattr(ChatCollector, "body", slow)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(capabilities=("chat", "completions", "logprobs"))
        large = asyncio.ensure_future(gateway.chat(logprobs=True, top_logprobs=2))
        await gateway.until(begun.is_set)
        assert (await gateway.chat()).status_code == 200
        assert not large.done()
        may_end.set()
        answer = (await large).json()
        assert answer["choices"][0]["logprobs"]["content"]
