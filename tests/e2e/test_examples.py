"""Every file in examples/ runs as a test."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Harness, eventually
from tests.fakes.client_requests import claude_code_turn, codex_turn

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


def test_the_settings_of_codex_and_claude_code_name_this_servers_routes(harness: Harness) -> None:
    codex = tomllib.loads((EXAMPLES / "codex" / "config.toml").read_text(encoding="utf-8"))
    provider = codex["model_providers"][codex["model_provider"]]
    settings = json.loads((EXAMPLES / "claude_code" / "settings.json").read_text(encoding="utf-8"))
    claude = settings["env"]
    assert (provider["wire_api"], provider["supports_websockets"]) == ("responses", True)
    assert claude["ANTHROPIC_MODEL"] == codex["model"]
    for base, path, body in (
        (provider["base_url"], "/responses", codex_turn(codex["model"])),
        (
            claude["ANTHROPIC_BASE_URL"],
            "/v1/messages?beta=true",
            claude_code_turn(claude["ANTHROPIC_MODEL"], "1", max_tokens=16),
        ),
    ):
        url = base.replace("http://127.0.0.1:8000", harness.url) + path
        answer = httpx.post(url, json=body, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text


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
