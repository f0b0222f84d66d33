"""Clients that leave, at every stage of every metered route: nothing of theirs goes on."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.http.access import guard as access
from protocol.wire.messages import (
    Abort,
    Authorize,
    Cancel,
    Classify,
    CloseParse,
    Detokenize,
    Embed,
    Generate,
    OpenParse,
    ParseBatch,
    Prepare,
)
from tests.fakes.fake_workers import FakeAuth, FakeEngine, FakeParser
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

CAPABILITIES = ("chat", "completions", "embeddings", "classify")
CHAT: dict[str, Any] = {"model": "demo", "messages": MESSAGES}
QUESTIONS: list[tuple[str, dict[str, Any], type[Any]]] = [
    ("/v1/chat/completions", CHAT, Prepare),
    ("/v1/completions", {"model": "demo", "prompt": ["a", "b"]}, Prepare),
    ("/v1/embeddings", {"model": "demo", "input": "a"}, Embed),
    ("/v1/classify", {"model": "demo", "input": "a"}, Classify),
    ("/v1/rerank", {"model": "demo", "query": "a", "documents": ["b"]}, Classify),
    ("/tokenize", {"model": "demo", "prompt": "a"}, Prepare),
    ("/detokenize", {"model": "demo", "tokens": [1]}, Detokenize),
]
METERED: list[tuple[str, dict[str, Any]]] = [
    *((path, body) for path, body, _ in QUESTIONS),
    ("/v1/parse", {"format": "hermes", "text": "a"}),
]


def request_to(path: str, body: dict[str, Any]) -> bytes:
    return post(json.dumps(body).encode(), path=path)


async def workers_of(gateway: RunningGateway) -> tuple[FakeAuth, FakeEngine, FakeParser]:
    return (
        await gateway.auth(),
        await gateway.engine(
            text=None,
            tool_format="hermes",
            capabilities=CAPABILITIES,
            labels=("LABEL_0",),
        ),
        await gateway.parser(),
    )


async def leave_when(
    gateway: RunningGateway, data: bytes, stage: Callable[[], Awaitable[None]]
) -> None:
    """Send a request and leave at a stage of it."""
    async with connected(gateway) as leaving:
        leaving.writer.write(data)
        await stage()


async def all_gone(gateway: RunningGateway, auth: FakeAuth) -> None:
    """Nothing of any request is left, and every lease that was granted is settled."""
    application = gateway.application
    await gateway.until(lambda: len(application.sessions) == 0)
    await gateway.until(lambda: len(application.outbox) == 0)
    await gateway.until(
        lambda: sum(engine.num_unfinished for engine in application.directory.engines("demo")) == 0
    )
    leases = {f"lease-{one.request_id}" for one in auth.of(Authorize) if one.completion_tokens}
    settled = {one.lease_id for one in auth.settled()}
    assert settled <= leases


@pytest.mark.parametrize(("path", "body"), METERED)
async def test_who_leaves_while_the_caller_is_looked_up_starts_nothing(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine, parser = await workers_of(gateway)
        auth.is_mute = True
        await leave_when(
            gateway, request_to(path, body), lambda: auth.until(lambda: bool(auth.of(Authorize)))
        )
        await gateway.until(lambda: len(gateway.application.sessions) == 0)
        assert engine.commands == []
        assert parser.of(OpenParse) == []


@pytest.mark.parametrize(("path", "body", "kind"), QUESTIONS)
async def test_who_leaves_while_an_engine_is_asked_takes_the_question_along(
    socket_dir: Path, path: str, body: dict[str, Any], kind: type[Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine, _ = await workers_of(gateway)
        engine.is_mute = True
        await leave_when(
            gateway,
            request_to(path, body),
            lambda: engine.until(lambda: bool(engine.of(kind))),
        )
        await engine.until(
            lambda: (
                {one.request_id for one in engine.of(kind)}
                <= {one.request_id for one in (*engine.of(Cancel), *engine.of(Abort))}
            )
        )
        assert engine.of(Generate) == []
        await all_gone(gateway, auth)


@pytest.mark.parametrize(("path", "body"), METERED)
async def test_who_leaves_in_the_queue_is_taken_out_of_it(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(
            text=None, max_requests=1, capabilities=CAPABILITIES, labels=("LABEL_0",)
        )
        admission = gateway.application.admission
        running = asyncio.ensure_future(gateway.chat())
        await engine.until(lambda: bool(engine.of(Generate)))
        if path in ("/tokenize", "/detokenize", "/v1/parse"):
            running.cancel()
            return  # it takes a slot of another kind, or none
        num_before = len(engine.of(Prepare))
        await leave_when(
            gateway,
            request_to(path, body),
            lambda: gateway.until(lambda: admission.num_waiting("demo") == 1),
        )
        await gateway.until(lambda: admission.num_waiting("demo") == 0)
        assert len(engine.of(Prepare)) == num_before
        assert engine.of(Embed) == []
        assert engine.of(Classify) == []
        engine.finish(engine.of(Generate)[0])
        assert (await running).status_code == 200
        await all_gone(gateway, auth)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("has_output", [False, True])
async def test_who_leaves_an_answer_ends_it_at_the_engine(
    socket_dir: Path, *, stream: bool, has_output: bool
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine, _ = await workers_of(gateway)

        async def stage() -> None:
            await engine.until(lambda: len(engine.of(Generate)) == 3)
            if has_output:
                for generate in engine.of(Generate):
                    engine.emit(generate, "x")

        body = {**CHAT, "stream": stream, "n": 3}
        await leave_when(gateway, request_to("/v1/chat/completions", body), stage)
        await engine.until(lambda: bool(engine.of(Abort)))
        await all_gone(gateway, auth)
        assert len(auth.settled()) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "demo", "input": "hi"}),
        ("/v1/messages", {"model": "demo", "max_tokens": 9, "messages": CHAT["messages"]}),
    ],
)
async def test_who_leaves_an_answer_of_the_other_apis_ends_it_too(
    socket_dir: Path, path: str, body: dict[str, Any], *, stream: bool
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine, _ = await workers_of(gateway)

        async def stage() -> None:
            await engine.until(lambda: len(engine.of(Generate)) == 1)
            engine.emit(engine.of(Generate)[0], "x")

        await leave_when(gateway, request_to(path, {**body, "stream": stream}), stage)
        await engine.until(lambda: bool(engine.of(Abort)))
        await all_gone(gateway, auth)
        assert len(auth.settled()) == 1


async def test_who_leaves_while_a_text_is_parsed_closes_the_session(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, _, parser = await workers_of(gateway)
        parser.is_mute = True
        body = {"format": "hermes", "text": "a"}
        await leave_when(
            gateway,
            request_to("/v1/parse", body),
            lambda: parser.until(lambda: bool(parser.of(ParseBatch))),
        )
        await parser.until(lambda: bool(parser.of(CloseParse)))
        await all_gone(gateway, auth)


async def test_who_leaves_before_the_request_begins_reserves_nothing(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, may_go_on = asyncio.Event(), asyncio.Event()
    read = access._read

    async def slow(request: Any, bodies: Any, place: Any) -> bytes:
        body = await read(request, bodies, place)
        parsed.set()
        await may_go_on.wait()
        return body

    monkeypatch.setattr(access, "_read", slow)
    async with running_gateway(socket_dir) as gateway:
        auth, engine, _ = await workers_of(gateway)
        for path, body in METERED:
            parsed.clear()
            may_go_on.clear()
            await leave_when(gateway, request_to(path, body), parsed.wait)  # type: ignore[arg-type]
            assert (await gateway.client.get("/live")).status_code == 200
            may_go_on.set()
        assert (await gateway.client.get("/live")).status_code == 200
        await all_gone(gateway, auth)
        assert auth.of(Authorize) == []
        assert engine.commands == []


async def test_two_requests_in_a_pipe_whose_client_leaves_both_end(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth, engine, _ = await workers_of(gateway)
        chat = request_to("/v1/chat/completions", CHAT)
        await leave_when(
            gateway, chat + chat, lambda: engine.until(lambda: len(engine.of(Generate)) == 1)
        )
        await engine.until(lambda: len(engine.of(Abort)) == 1)
        await all_gone(gateway, auth)
        assert len(engine.of(Generate)) == 1
