"""Every file in examples/ runs as a test."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.e2e.harness import Harness, eventually
from tests.fakes.client_requests import (
    CLAUDE_CODE_HEADERS,
    CODEX_HEADERS,
    claude_code_turn,
    codex_turn,
)

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(harness: Harness, name: str, *arguments: str) -> str:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{harness.url}/v1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_chat_example_answers(harness: Harness) -> None:
    assert "42" in run_example(harness, "chat.py", "What is 12 + 30?")


def test_the_tool_loop_calls_and_answers(harness: Harness) -> None:
    output = run_example(harness, "tool_loop.py", "What is the weather in Berlin?")
    assert 'get_weather({"city": "Berlin"})' in output
    assert "16" in output.splitlines()[-1]


def test_the_mcp_client_lists_tools_and_asks_a_model(harness: Harness) -> None:
    first, *answer = run_example(harness, "mcp_client.py").splitlines()
    assert first.startswith("generate: Asks a language model")
    assert "42" in "".join(answer)


def test_the_agent_calls_and_answers(harness: Harness) -> None:
    assert "16" in run_example(harness, "agents_sdk.py", "What is the weather in Berlin?")


def claude_code() -> dict[str, str]:
    """The environment of Claude Code's example."""
    settings = (EXAMPLES / "claude_code" / "settings.json").read_text(encoding="utf-8")
    env: dict[str, str] = json.loads(settings)["env"]
    return env


def codex() -> tuple[str, dict[str, Any]]:
    """The model of Codex's example, and its provider."""
    config = tomllib.loads((EXAMPLES / "codex" / "config.toml").read_text(encoding="utf-8"))
    provider: dict[str, Any] = config["model_providers"][config["model_provider"]]
    return config["model"], provider


def events_at(url: str, body: dict[str, Any], headers: dict[str, str]) -> list[dict[str, Any]]:
    """The events of a stream, but for `[DONE]`."""
    answer = httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def test_claude_code_runs_a_tool_and_goes_on(harness: Harness) -> None:
    env = claude_code()
    base = env["ANTHROPIC_BASE_URL"].replace("http://127.0.0.1:8000", harness.url)
    url, model = f"{base}/v1/messages?beta=true", env["ANTHROPIC_MODEL"]
    # Titles and its own agents ask for a class of model by the names of these.
    classes = {f"ANTHROPIC_DEFAULT_{name}_MODEL" for name in ("OPUS", "SONNET", "HAIKU")}
    assert {env[name] for name in classes} == {model}
    # The bundled model is too small to want a tool by itself.
    forced = {"type": "tool", "name": "Bash"}
    fields: dict[str, Any] = {"tool_choice": forced, "thinking": {"type": "disabled"}}
    first = claude_code_turn(model, "1", max_tokens=128, **fields)
    events = events_at(url, first, CLAUDE_CODE_HEADERS)
    (started,) = [one for one in events if one["type"] == "content_block_start"]
    call = started["content_block"]
    assert (call["type"], call["name"], call["id"][:6]) == ("tool_use", "Bash", "toolu_")
    pieces = [one["delta"] for one in events if one["type"] == "content_block_delta"]
    said = "".join(one["partial_json"] for one in pieces)
    assert events[-2]["delta"]["stop_reason"] == "tool_use", said
    command = json.loads(said)
    assert isinstance(command["command"], str)

    result = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": "a.py"}],
        "is_error": False,
    }
    turn = claude_code_turn(model, "2", max_tokens=16)
    turn["messages"] += [
        {"role": "assistant", "content": [{**call, "input": command}]},
        {"role": "user", "content": [result]},
    ]
    events = events_at(url, turn, CLAUDE_CODE_HEADERS)
    assert [one["type"] for one in events][-2:] == ["message_delta", "message_stop"]
    # The prompt of the second turn begins as that of the first, which was cached.
    usage = events[-2]["usage"]
    assert usage["cache_read_input_tokens"] > 0
    assert 0 < usage["output_tokens"] <= 16


def test_codex_runs_a_tool_and_replays_it(harness: Harness) -> None:
    model, provider = codex()
    assert (provider["wire_api"], provider["supports_websockets"]) == ("responses", True)
    assert model == claude_code()["ANTHROPIC_MODEL"]
    url = provider["base_url"].replace("http://127.0.0.1:8000", harness.url) + "/responses"
    forced = {"type": "function", "name": "exec_command"}
    first = codex_turn(model, tool_choice=forced, max_output_tokens=128)
    events = events_at(url, first, CODEX_HEADERS)
    assert events[-1]["type"] == "response.completed", events[-1]
    items = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    call = items[-1]
    assert (call["type"], call["name"]) == ("function_call", "exec_command")
    assert isinstance(json.loads(call["arguments"])["cmd"], str)

    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py"}
    replayed = [{key: one[key] for key in one if key not in ("id", "status")} for one in items]
    turn = codex_turn(model, input=[*first["input"], *replayed, output], max_output_tokens=16)
    last = events_at(url, turn, CODEX_HEADERS)[-1]
    assert last["type"] in ("response.completed", "response.incomplete")
    assert last["response"]["usage"]["input_tokens_details"]["cached_tokens"] > 0


def test_codex_goes_on_over_its_websocket(harness: Harness) -> None:
    model, provider = codex()
    base = provider["base_url"].replace("http://127.0.0.1:8000", harness.url)
    headers = {**CODEX_HEADERS, "OpenAI-Beta": "responses_websockets=2026-02-06"}
    agent = headers.pop("user-agent")
    with connect(
        f"{base.replace('http', 'ws', 1)}/responses",
        proxy=None,
        additional_headers=headers,
        user_agent_header=agent,
    ) as socket:

        def turn(**fields: Any) -> dict[str, Any]:
            socket.send(json.dumps({"type": "response.create", **codex_turn(model, **fields)}))
            while True:
                event: dict[str, Any] = json.loads(socket.recv(timeout=120))
                assert event["type"] not in ("error", "response.failed"), event
                if event["type"] in ("response.completed", "response.incomplete"):
                    response: dict[str, Any] = event["response"]
                    return response

        # It warms the prompt up first, then goes on from that by id with what is new alone.
        warm = turn(generate=False)
        assert warm["output"] == []
        forced = {"type": "function", "name": "exec_command"}
        first = turn(
            input=[],
            previous_response_id=warm["id"],
            tool_choice=forced,
            max_output_tokens=128,
        )
        call = first["output"][-1]
        assert (call["type"], call["name"]) == ("function_call", "exec_command")
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py"}
        second = turn(input=[output], previous_response_id=first["id"], max_output_tokens=16)
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        assert second["output"]


def test_the_server_calls_tools_of_an_mcp_server(harness: Harness) -> None:
    lines = run_example(harness, "mcp_tools.py", "What is the weather in Berlin?").splitlines()
    assert lines[0] == "weather has get_weather"
    assert lines[1].startswith("get_weather({")
    assert "sunny" in " ".join(lines[1:])


def test_the_offline_example_needs_no_server(harness: Harness) -> None:
    lines = run_example(harness, "offline.py").splitlines()
    assert lines[3].count("|") > 1
    assert "is_capital" in lines[-1]


@pytest.fixture
def foreign_harness(tmp_path: Path, socket_dir: Path) -> Iterator[str]:
    """Gateway, auth and parser of ours with the foreign engine worker; yields the URL."""
    port_file = socket_dir / "port"
    environment = {
        **os.environ,
        "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{socket_dir}/engine",
        "PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/auth",
        "PENSTOCK_TOOLPARSER_ENDPOINT": f"ipc://{socket_dir}/toolparser",
        "PENSTOCK_PORT": "0",
        "PENSTOCK_PORT_FILE": str(port_file),
        "PENSTOCK_MODELS": "echo",
        "PENSTOCK_REQUIRE_KEYS": "false",
        "PENSTOCK_ALLOW_ANONYMOUS": "true",
        "PENSTOCK_DATA_DIR": str(tmp_path),
    }
    commands = [["-m", "gateway"], ["-m", "auth_worker"], ["-m", "toolparser_worker"]]
    commands.append([str(EXAMPLES / "foreign_engine_worker.py")])
    processes = [
        subprocess.Popen([sys.executable, *command], env=environment) for command in commands
    ]

    def ready() -> bool:
        assert all(process.poll() is None for process in processes)
        if not port_file.exists():
            return False
        url = f"http://127.0.0.1:{port_file.read_text(encoding='ascii').strip()}"
        try:
            return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(ready)
        yield f"http://127.0.0.1:{port_file.read_text(encoding='ascii').strip()}"
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes[:3]:
            assert process.wait(30) == 0
        processes[3].wait(30)


def test_a_foreign_engine_worker_serves_chat_and_completions(foreign_harness: str) -> None:
    chat = {"model": "echo", "messages": [{"role": "user", "content": "drawer"}]}
    reply = httpx.post(f"{foreign_harness}/v1/chat/completions", json=chat, trust_env=False)
    assert reply.json()["choices"][0]["message"]["content"] == "reward"
    assert reply.json()["usage"] == {
        **reply.json()["usage"],
        "prompt_tokens": 6,
        "completion_tokens": 6,
    }
    completion = {"model": "echo", "prompt": "stressed", "max_tokens": 4}
    reply = httpx.post(f"{foreign_harness}/v1/completions", json=completion, trust_env=False)
    assert reply.json()["choices"][0]["text"] == "dess"
