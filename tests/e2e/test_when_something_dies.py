"""One test for each line of the failure table, with real processes: nothing a client notices."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.harness import Harness, eventually, start_harness, stop_harness
from tests.e2e.live_stream import LiveStream, ask, known_answer

pytestmark = pytest.mark.process

COUNTING = [{"role": "user", "content": "Count from 1 to 100."}]
LONG: dict[str, Any] = {
    "model": "penstock-demo",
    "messages": COUNTING,
    "ignore_eos": True,
    "max_tokens": 180,
    "temperature": 0,
}
SHORT = {
    "model": "penstock-demo",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 3,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CHOICES = {
    **LONG,
    "n": 2,
    "seed": 11,
    "temperature": 1.3,
    "top_p": 0.9,
    "frequency_penalty": 0.4,
    "presence_penalty": 0.3,
    "repetition_penalty": 1.1,
    "max_tokens": 120,
    "logprobs": True,
    "top_logprobs": 2,
}
TOOLS = {
    **LONG,
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER],
    "max_tokens": 160,
    "logprobs": True,
}

NUMBERS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 100, "maximum": 99_999},
    "minItems": 30,
    "maxItems": 30,
}
SCHEMA: dict[str, Any] = {
    "model": "penstock-demo",
    "messages": COUNTING,
    "temperature": 1.2,
    "seed": 9,
    "guided_json": {
        "type": "object",
        "properties": {"first": NUMBERS, "second": {"enum": ["yes", "no"]}},
        "required": ["first", "second"],
        "additionalProperties": False,
    },
}
REMEMBER = {
    "type": "function",
    "function": {
        "name": "remember",
        "parameters": {
            "type": "object",
            "properties": {"note": {"type": "string", "minLength": 120, "maxLength": 160}},
            "required": ["note"],
            "additionalProperties": False,
        },
    },
}
"""A tool whose calls take a while."""
REQUIRED = {**TOOLS, "ignore_eos": False, "tools": [REMEMBER], "tool_choice": "required"}
NAMED = {
    **REQUIRED,
    "tools": [WEATHER, REMEMBER],
    "tool_choice": {"type": "function", "function": {"name": "remember"}},
    "temperature": 1.2,
    "seed": 7,
}


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Harness]:
    """A deployment whose processes are killed: two engines, two parsers, one of everything else."""
    harness = start_harness(
        tmp_path_factory.mktemp("frail") / "data",
        cache_dir,
        *("--deterministic", "--engines", "2", "--parsers", "2", "--drain-timeout", "150"),
        PENSTOCK_WORKER_DEAD_S="6",
    )
    yield harness
    assert stop_harness(harness) == 0  # also when the last test has stopped it


@pytest.fixture
def whole(frail: Harness) -> Harness:
    """The deployment with all of its processes ready."""
    eventually(lambda: _num_ready(frail) == {"engine": 2, "toolparser": 2, "auth": 1}, 120)
    return frail


@pytest.fixture(scope="module")
def known(frail: Harness) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Requests of all kinds with what they answer when nothing happens."""
    eventually(lambda: ask(frail.url, SHORT).status_code == 200)
    sampled = {**LONG, "seed": 5, "temperature": 1.2}
    text = known_answer(frail.url, sampled)[0]["message"]["content"]
    # A stop string that comes late, and not before.
    stop = next(
        text[start : start + 12]
        for start in range(len(text) * 3 // 4, len(text))
        if text.find(text[start : start + 12]) == start
    )
    bodies = {"plain": LONG, "stop": {**sampled, "stop": [stop]}, "choices": CHOICES}
    bodies |= {"tools": TOOLS, "required": REQUIRED, "named": NAMED, "schema": SCHEMA}
    answers = {name: (body, known_answer(frail.url, body)) for name, body in bodies.items()}
    assert answers["stop"][1][0]["finish_reason"] == "stop"
    assert answers["tools"][1][0]["message"]["tool_calls"][0]["name"] == "get_weather"
    for name in ("required", "named"):
        (call,) = answers[name][1][0]["message"]["tool_calls"]
        assert call["name"] == "remember"
        assert len(json.loads(call["arguments"])["note"]) >= 120
    assert len(json.loads(answers["schema"][1][0]["message"]["content"])["first"]) == 30
    assert len({one["message"]["content"] for one in answers["choices"][1]}) == 2
    assert [len(one["tokens"]) for one in answers["choices"][1]] == [120, 120]
    return answers


Known = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]


def some_of(known: Known) -> Known:
    """A plain stream and one with a tool call, where it doesn't matter what streams are of."""
    return {name: known[name] for name in ("plain", "tools")}


def start_all(harness: Harness, known: Known) -> dict[str, LiveStream]:
    """A stream of each kind, all under way."""
    usage = {"stream_options": {"include_usage": True}}
    streams = {name: LiveStream(harness.url, body | usage) for name, (body, _) in known.items()}
    for stream in streams.values():
        stream.wait_started()
    return streams


def assert_undisturbed(known: Known, streams: dict[str, LiveStream]) -> None:
    for name, stream in streams.items():
        assert stream.answer() == known[name][1], name


def assert_booked(harness: Harness, streams: dict[str, LiveStream]) -> None:
    """The tokens that were told are those that are booked, once."""
    query = "SELECT completion_tokens FROM ledger WHERE request_id = ? AND outcome != 'unused'"
    for name, stream in streams.items():
        request_id = stream.chunks[0]["id"].removeprefix("chatcmpl-")
        told = [(stream.chunks[-1]["usage"]["completion_tokens"],)]
        eventually(lambda: bool(rows_of(harness, query, request_id)))  # noqa: B023 - it waits for it
        assert rows_of(harness, query, request_id) == told, name


def metric(harness: Harness, name: str, **labels: str) -> float:
    """The sum of a metric's series that carry these labels."""
    text = httpx.get(f"{harness.url}/metrics", timeout=10, trust_env=False).text
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{name}[{{ ]", line) and all(label in line for label in wanted)
    )


def _num_ready(harness: Harness) -> dict[str, float]:
    try:
        return {
            role: metric(harness, "penstock_gateway_workers", role=role, phase="ready")
            for role in ("engine", "toolparser", "auth")
        }
    except httpx.TransportError:
        return {}


def test_a_killed_engines_streams_go_on_at_another_one_with_the_same_text(
    whole: Harness, known: Known
) -> None:
    before = metric(whole, "penstock_gateway_resumptions_total", role="engine")
    streams = start_all(whole, known)
    os.kill(whole.pids("engine_worker")[0], signal.SIGKILL)
    assert_undisturbed(known, streams)
    assert_booked(whole, streams)
    # Eight choices on two engines: some of them were on the one that was killed.
    assert metric(whole, "penstock_gateway_resumptions_total", role="engine") > before


def test_a_stopped_engine_is_left_and_what_it_says_later_counts_for_nothing(
    whole: Harness, known: Known
) -> None:
    streams = start_all(whole, known)
    stopped = whole.pids("engine_worker")[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        eventually(lambda: _num_ready(whole).get("engine") == 1)
        assert_undisturbed(known, streams)
        assert_booked(whole, streams)
        known = some_of(known)
        more = start_all(whole, known)
    finally:
        os.kill(stopped, signal.SIGCONT)
    # It wakes up amid streams that it once had the like of, and with its old outputs queued.
    assert_undisturbed(known, more)
    eventually(lambda: _num_ready(whole).get("engine") == 2)
    assert stopped in whole.pids("engine_worker")


# That slow is not dead, `make test` has with a prompt of a hundred thousand tokens
# (tests/integration/test_real_engines_behind_a_gateway.py); this one takes the whole machine.
@pytest.mark.long
def test_four_busy_processes_beside_raise_no_false_death(whole: Harness, known: Known) -> None:
    before = metric(whole, "penstock_gateway_resumptions_total")
    some = some_of(known)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        assert_undisturbed(some, start_all(whole, some))
        assert _num_ready(whole) == {"engine": 2, "toolparser": 2, "auth": 1}
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert metric(whole, "penstock_gateway_resumptions_total") == before


def test_killed_parsers_are_replaced_and_the_text_is_replayed(whole: Harness, known: Known) -> None:
    before = metric(whole, "penstock_gateway_resumptions_total", role="toolparser")
    with_tools = {name: known[name] for name in ("tools", "required", "named")}
    streams = start_all(whole, with_tools)
    for pid in whole.pids("toolparser_worker"):
        os.kill(pid, signal.SIGKILL)
    assert_undisturbed(with_tools, streams)
    assert metric(whole, "penstock_gateway_resumptions_total", role="toolparser") > before


def test_without_auth_streams_go_on_and_are_settled_once_although_the_gateway_dies_too(
    whole: Harness, known: Known
) -> None:
    body, answer = known["plain"]
    stream = LiveStream(whole.url, body)
    stream.wait_started()
    (auth,) = whole.pids("auth_worker")
    os.kill(auth, signal.SIGSTOP)
    try:
        assert stream.answer() == answer
        eventually(lambda: not _num_ready(whole).get("auth") or _is_refused(whole))
        refused = ask(whole.url, SHORT)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        outbox = whole.data_dir / "gateway-outbox.jsonl"
        eventually(lambda: '"settle"' in outbox.read_text(encoding="utf-8"))
        lines = outbox.read_text(encoding="utf-8").splitlines()
        settle = [json.loads(line)["settle"] for line in lines if '"settle"' in line][-1]
        assert settle["completion_tokens"] == body["max_tokens"]
        _kill_gateway(whole)
    finally:
        os.kill(auth, signal.SIGKILL)
    query = "SELECT outcome, completion_tokens FROM ledger WHERE lease_id = ?"
    booked = [("finished", body["max_tokens"])]
    eventually(lambda: rows_of(whole, query, settle["lease_id"]) == booked)
    eventually(lambda: ask(whole.url, SHORT).status_code == 200)
    assert rows_of(whole, query, settle["lease_id"]) == booked


def test_what_a_killed_gateway_had_is_dropped_by_the_engines_and_charged_all_the_same(
    whole: Harness, known: Known
) -> None:
    stream = LiveStream(whole.url, known["plain"][0])
    stream.wait_started()
    _kill_gateway(whole)
    stream.join()
    assert stream.error is not None or stream.ends == []
    # Younger than the first renewal of its lease: only the engine knows what was generated.
    query = "SELECT reported_completion_tokens FROM leases"
    eventually(lambda: any(tokens >= len(stream.chunks) - 1 for (tokens,) in rows_of(whole, query)))
    eventually(lambda: _num_ready(whole).get("engine") == 2)
    assert known_answer(whole.url, SHORT)


def test_a_client_that_leaves_is_aborted(whole: Harness) -> None:
    url = f"{whole.url}/v1/chat/completions"
    body = {**LONG, "max_tokens": 1500, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as reply:
        next(reply.iter_lines())
    eventually(lambda: metric(whole, "penstock_gateway_requests_in_flight") == 0)
    tokens = metric(whole, "penstock_gateway_tokens_total", kind="completion")
    assert ask(whole.url, SHORT).status_code == 200
    assert metric(whole, "penstock_gateway_tokens_total", kind="completion") == tokens + 3


def test_a_rolling_restart_fails_no_request(whole: Harness, known: Known) -> None:
    log = whole.data_dir.parent / f"{whole.data_dir.name}.log"
    num_clean_ends = log.read_text(encoding="utf-8").count("died (exit code 0)")
    known = some_of(known)
    streams = start_all(whole, known)
    for module in ("engine_worker", "toolparser_worker"):
        pid = whole.pids(module)[0]
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: _is_gone(whole, module, pid))  # noqa: B023 - it waits for it
        assert ask(whole.url, TOOLS).status_code == 200
    assert_undisturbed(known, streams)
    stream = LiveStream(whole.url, known["plain"][0])
    stream.wait_started()
    (auth,) = whole.pids("auth_worker")
    os.kill(auth, signal.SIGTERM)
    eventually(lambda: _is_gone(whole, "auth_worker", auth))
    assert stream.answer() == known["plain"][1]
    eventually(lambda: _num_ready(whole).get("auth") == 1)
    ends = log.read_text(encoding="utf-8").count("died (exit code 0)")
    assert ends == num_clean_ends + 3


def test_a_gateway_told_to_stop_finishes_what_it_has(whole: Harness, known: Known) -> None:
    body, answer = known["tools"]
    stream = LiveStream(whole.url, body)
    stream.wait_started()
    (pid,) = whole.pids("gateway")
    os.kill(pid, signal.SIGTERM)
    stream.join()
    # Before anything is compared: it has another port, where the tests that follow have to ask.
    find_gateway(whole, pid)
    assert stream.answer() == answer
    eventually(lambda: ask(whole.url, SHORT).status_code == 200)


def _is_gone(harness: Harness, module: str, pid: int) -> bool:
    return pid not in harness.pids(module)


def _is_refused(harness: Harness) -> bool:
    return ask(harness.url, SHORT).status_code == 503


def _kill_gateway(harness: Harness) -> None:
    (pid,) = harness.pids("gateway")
    os.kill(pid, signal.SIGKILL)
    find_gateway(harness, pid)


def find_gateway(harness: Harness, old_pid: int) -> None:
    """The gateway that follows an old one; with a free port asked for, it has another one."""

    def is_there() -> bool:
        new = [pid for pid in harness.pids("gateway") if pid != old_pid]
        if not new:
            return False
        try:
            port = int(_setting(new[0], "PENSTOCK_PORT_FILE").read_text(encoding="ascii"))
            harness.url = f"http://127.0.0.1:{port}"
            return httpx.get(f"{harness.url}/live", timeout=5, trust_env=False).status_code == 200
        except (httpx.TransportError, ValueError, OSError):
            return False

    eventually(is_there)


def _setting(pid: int, name: str) -> Path:
    """A path in a process's environment."""
    entries = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
    return next(
        Path(entry.removeprefix(f"{name}=")) for entry in entries if entry.startswith(f"{name}=")
    )


def rows_of(harness: Harness, query: str, *parameters: str) -> list[tuple[Any, ...]]:
    """What the auth worker's database holds."""
    connection = sqlite3.connect(f"file:{harness.data_dir}/auth.sqlite3?mode=ro", uri=True)
    try:
        return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


# Of one that serves, test_the_supervisor_is_killed.py shows the same.
@pytest.mark.long
def test_a_supervisor_killed_with_9_takes_its_children_along(
    tmp_path: Path, cache_dir: Path
) -> None:
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0"]
    command += ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(cache_dir)]
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    supervisor = psutil.Process(process.pid)
    eventually(lambda: len(supervisor.children(recursive=True)) >= 4)
    children = supervisor.children(recursive=True)
    run_dir = _setting(children[0].pid, "PENSTOCK_RUN_DIR")
    # In the middle of its start: the engine loads, the gateway serves.
    eventually(lambda: (run_dir / "port").exists())
    assert list(run_dir.glob("engine"))
    process.kill()
    process.wait()
    eventually(lambda: not any(child.is_running() for child in children))
    assert not list(run_dir.glob("engine")), "socket files are left"


# That an engine says it in one line, tests/integration/test_engine_worker_process.py shows of a
# broken checkpoint; that wrong settings end a server, tests/unit/penstock/test_supervisor.py.
@pytest.mark.long
def test_an_unsupported_architecture_is_one_clear_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["NovelForCausalLM"], "model_type": "novel"}),
        encoding="utf-8",
    )
    (folder / "model.safetensors").write_bytes(b"")
    command = [sys.executable, "-m", "penstock", "serve", str(folder), "--port", "0"]
    command += ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "NovelForCausalLM" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_what_runs_and_leaves_no_process_and_no_socket(frail: Harness) -> None:
    frail.wait_ready()
    children = psutil.Process(frail.process.pid).children(recursive=True)
    run_dir = _setting(children[0].pid, "PENSTOCK_RUN_DIR")
    eventually(lambda: ask(frail.url, SHORT).status_code == 200)
    stream = LiveStream(frail.url, {**LONG, "max_tokens": 400})
    stream.wait_started()
    frail.process.send_signal(signal.SIGINT)
    assert frail.process.wait(180) == 0
    stream.join()
    assert len(stream.ends) == 1
    assert not any(child.is_running() for child in children)
    assert not run_dir.exists()
