"""Large bodies: parsed beside the loop, refused by their length, dropped with their client."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.http.bodies import parsers
from gateway.http.bodies import reading as bodies
from gateway.http.bodies.body_pool import BodyPool
from gateway.http.schemas.base.beside_loop import MAX_GRAMMAR_CHARACTERS_ON_LOOP
from gateway.http.schemas.tools import custom_tools
from protocol.runtime.child_process import ChildProcess
from protocol.wire.messages import Abort, Authorize, Prepare
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import RunningGateway, running_gateway

NEVER_ANSWERS = (sys.executable, "-c", "import sys; sys.stdin.read()")
LARGE = "x" * (bodies.OFF_LOOP_BYTES + 1000)


def pool_of(gateway: RunningGateway) -> Any:
    return gateway.application._body_pool


async def completion(gateway: RunningGateway, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "demo", "max_tokens": 16, **fields}
    response = await gateway.client.post("/v1/completions", json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LARGE}]}, 200),
        ("/v1/completions", {"prompt": LARGE}, 200),
        ("/tokenize", {"prompt": LARGE}, 200),
        ("/detokenize", {"tokens": [1] * 200_000}, 200),
        ("/v1/parse", {"text": LARGE}, 200),
        ("/v1/embeddings", {"input": LARGE}, 400),  # its engines make none
        ("/v1/tools/execute", {"name": "f", "arguments": {"x": LARGE}, "model": None}, 501),
    ],
)
async def test_a_large_body_never_meets_this_process(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], status: int
) -> None:
    def here(*_: object) -> None:
        raise AssertionError("parsed on the loop")

    for name in (
        "parse_chat_body",
        "parse_completion_body",
        "parse_embedding_body",
        "parse_tokenize_body",
        "parse_detokenize_body",
        "load_json_object",
    ):
        monkeypatch.setattr(parsers, name, here)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(tool_format="hermes")
        await gateway.parser()
        response = await gateway.client.post(path, json={"model": "demo", **body})
        assert response.status_code == status, response.text


@pytest.mark.parametrize("is_small", [True, False], ids=["small", "with a long message"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_long_grammars_of_tools_are_not_read_on_the_loop(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_small: bool
) -> None:
    def here(definition: str) -> None:
        raise AssertionError("read on the loop")

    text = "x" if is_small else "x" * 2 * bodies.LONG_NUMBERS_BYTES
    definition = "start: start | " + '"a" ' * (MAX_GRAMMAR_CHARACTERS_ON_LOOP // 4)
    custom = {
        "name": "run",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": definition}},
    }
    tool: dict[str, Any] = {"type": "custom", "custom": custom}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if path == "/v1/responses":
        wanted = {"type": "grammar", "syntax": "lark", "definition": definition}
        tool, asked = {"type": "custom", "name": "run", "format": wanted}, {"input": text}
    monkeypatch.setattr(custom_tools, "_held_to", here)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(tool_format="hermes")
        await gateway.parser()
        body = {"model": "demo", "tools": [tool], **asked}
        response = await gateway.client.post(path, json=body)
        assert response.status_code == 200, response.text


LONG_GRAMMAR = {
    "model": "demo",
    "messages": [{"role": "user", "content": "x"}],
    "tools": [
        {
            "type": "custom",
            "custom": {
                "name": "run",
                "format": {
                    "type": "grammar",
                    "grammar": {
                        "syntax": "lark",
                        "definition": "start: start | " + '"a" ' * 300,
                    },
                },
            },
        }
    ],
}
LONG_NUMBERS = {"model": "demo", "prompt": "x" * bodies.LONG_NUMBERS_BYTES, "temperature": 0.5}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", LONG_GRAMMAR), ("/v1/completions", LONG_NUMBERS)],
    ids=["grammar", "numbers"],
)
async def test_what_takes_long_is_parsed_for_callers_that_are_known(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    text = json.dumps(body).replace("0.5", "0.50000000000000000000")
    assert len(text) < bodies.SMALL_BYTES
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("sk-good",)
        await gateway.engine(tool_format="hermes")
        await gateway.parser()
        started = started_by(pool_of(gateway))
        headers = {"Authorization": "Bearer sk-strange", "Content-Type": "application/json"}
        response = await gateway.client.post(path, content=text, headers=headers)
        assert (response.status_code, started) == (401, [])
        headers["Authorization"] = "Bearer sk-good"
        response = await gateway.client.post(path, content=text, headers=headers)
        assert (response.status_code, len(started)) == (200, 1), response.text


async def test_errors_of_a_large_body_are_those_of_a_small_one(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        for extra in ("", LARGE):
            message = [{"role": "user", "content": "x"}]
            response = await gateway.chat(messages=message, metadata=extra, temperature=3)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "temperature")
            assert error["code"] == "invalid_request"
            response = await gateway.chat(messages=message, metadata=extra, audio={"a": 1})
            error = response.json()["error"]
            assert (error["param"], error["code"]) == ("audio", "unsupported_parameter")


async def test_a_large_request_says_the_same_to_the_engine_as_a_small_one(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        for padding in ("", LARGE):
            response = await gateway.chat(
                messages=[{"role": "user", "content": 'é "\\'}], metadata=padding, foo=1, top_k=3
            )
            assert response.headers["x-penstock-ignored-fields"] == "foo"
        first, second = engine.of(Prepare)
        assert first.messages_json == second.messages_json


def started_by(pool: BodyPool) -> list[ChildProcess]:
    """The processes that a pool starts from now on."""
    started, start = [], pool._start

    async def noted(
        command: Sequence[str], environment: Mapping[str, str], *, limit: int
    ) -> ChildProcess:
        process = await start(command, environment, limit=limit)
        started.append(process)
        return process

    pool._start = noted
    return started


async def test_a_process_that_is_killed_is_a_503_and_the_next_body_gets_another(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        pool = pool_of(gateway)
        started = started_by(pool)
        command, pool._command = pool._command, NEVER_ANSWERS
        asked = asyncio.ensure_future(completion(gateway, prompt=LARGE))
        await gateway.until(lambda: started)
        pool._command = command
        (process,) = started
        os.kill(process.pid, signal.SIGKILL)
        status, body = await asked
        assert (status, body["error"]["code"]) == (503, "overloaded")
        assert (await completion(gateway, prompt=LARGE))[0] == 200
        # One that dies while it is idle is nothing to anybody.
        (process,) = pool._idle
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert (await completion(gateway, prompt=LARGE))[0] == 200


async def test_parsing_ends_with_the_client_that_asked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        pool = pool_of(gateway)
        started = started_by(pool)
        pool._command = NEVER_ANSWERS
        async with connected(gateway) as leaving:
            leaving.writer.write(post(json.dumps({"model": "demo", "prompt": LARGE}).encode()))
            await gateway.until(lambda: started)
            (process,) = started
        await gateway.until(lambda: process.returncode is not None)
        await gateway.until(lambda: not pool._asking and not pool._turns._held)
        assert auth.of(Authorize) == []


async def test_idle_processes_end_by_themselves(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.bodies.body_pool.IDLE_S", 0.0)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        started: list[Any] = []
        pool = pool_of(gateway)
        find = pool._process

        async def note() -> Any:
            process, is_new = await find()
            started.append(process)
            return process, is_new

        monkeypatch.setattr(pool, "_process", note)
        assert (await completion(gateway, prompt=LARGE))[0] == 200
        async with asyncio.timeout(60):
            assert await started[0].wait() == 0


async def test_a_prompt_of_too_many_ids_is_refused_where_it_is_parsed(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine(max_model_len=4096)
        for prompt in ([1] * 5000, [1] * 400_000, [[1], [1] * 400_000]):
            status, body = await completion(gateway, prompt=prompt)
            assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
            assert body["error"]["param"] == "prompt"
            num = 5000 if len(prompt) == 5000 else 400_000
            assert body["error"]["message"] == (
                "This model's maximum context length is 4096 tokens. However, you requested 16 "
                f"output tokens and your prompt contains {num} input tokens. Shorten the prompt or "
                "ask for fewer output tokens."
            )
        assert engine.of(Prepare) == []
        # The two large ones reserved nothing either.
        assert len(auth.of(Authorize)) == 1
        status, body = await completion(gateway, prompt=[1] * 1_100_000, model="nobody's")
        assert (status, body["error"]["param"]) == (400, "prompt")


async def test_a_hopeless_text_is_refused_by_its_bytes_before_anything_is_sent(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(max_model_len=1000, max_token_bytes=8)
        # 984 tokens of 8 bytes fit beside 16 of output, whatever they are.
        assert (await completion(gateway, prompt="é" * 4 * 984))[0] == 200
        assert len(engine.of(Prepare)) == 1
        status, body = await completion(gateway, prompt="é" * 4 * 984 + "x")
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert "your prompt contains at least 985 input tokens" in body["error"]["message"]
        assert len(engine.of(Prepare)) == 1
        # Whoever has it cut, and a template that may drop a history, are another matter.
        assert (await completion(gateway, prompt="x" * 10_000, truncate_prompt_tokens=5))[0] == 200
        response = await gateway.chat(messages=[{"role": "user", "content": "x" * 10_000}])
        assert response.status_code == 200
        assert len(engine.of(Prepare)) == 3
        assert engine.of(Abort) == []


async def test_an_input_that_cannot_be_embedded_is_refused_by_its_length(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(
            max_model_len=100, max_token_bytes=8, capabilities=("embeddings",)
        )
        for inputs, told in (
            (["x", "x" * 801], "input 1 has at least 101."),
            ([[1] * 5, [1] * 150_000], "input 1 has 150000."),
            ([1] * 101, "input 0 has 101."),
        ):
            body = {"model": "demo", "input": inputs}
            response = await gateway.client.post("/v1/embeddings", json=body)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
            assert told in error["message"]
        assert engine.commands == []
