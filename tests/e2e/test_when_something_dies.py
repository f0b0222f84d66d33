"""kill -9 of each process kind, a disconnect, and the end of the house: one clear end a request."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.house import House, eventually, start_house, stop_house

pytestmark = pytest.mark.process

LONG = {
    "model": "penstock-demo",
    "messages": [{"role": "user", "content": "Count from 1 to 100."}],
    "stream": True,
    "ignore_eos": True,
    "max_tokens": 1500,
    "temperature": 0,
}
SHORT = {
    "model": "penstock-demo",
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 3,
}


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[House]:
    """A house whose processes are killed."""
    house = start_house(tmp_path_factory.mktemp("frail") / "data", cache_dir, "--deterministic")
    yield house
    assert stop_house(house) == 0


class Stream:
    """A long stream read by a thread; `ends` counts the terminal events."""

    def __init__(self, url: str, body: dict[str, object]) -> None:
        self.events: list[str] = []
        self.error: Exception | None = None
        self.started = threading.Event()
        self._url = url
        self._body = body
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        url = f"{self._url}/v1/chat/completions"
        try:
            with httpx.stream("POST", url, json=self._body, timeout=120, trust_env=False) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line.removeprefix("data: "))
                        if len(self.events) > 3:
                            self.started.set()
        except httpx.TransportError as error:
            self.error = error
        self.started.set()

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive(), "the stream never ended"

    @property
    def ends(self) -> list[str]:
        found = []
        for event in self.events:
            if event == "[DONE]":
                continue
            chunk = json.loads(event)
            if "error" in chunk:
                found.append("error")
            found += [c["finish_reason"] for c in chunk.get("choices", []) if c["finish_reason"]]
        return found


def answers(house: House) -> bool:
    reply = httpx.post(f"{house.url}/v1/chat/completions", json=SHORT, timeout=60, trust_env=False)
    return reply.status_code == 200


@pytest.mark.parametrize("module", ["engine_worker", "toolparser_worker", "auth_worker"])
def test_a_killed_worker_gives_its_streams_one_end_and_comes_back(
    frail: House, module: str
) -> None:
    frail.wait_ready()
    eventually(lambda: answers(frail))
    stream = Stream(frail.url, LONG)
    assert stream.started.wait(60)
    (pid,) = frail.pids(module)
    os.kill(pid, signal.SIGKILL)
    stream.join()
    assert stream.error is None
    assert stream.events[-1] == "[DONE]"
    assert stream.ends == ["length"]
    eventually(lambda: bool(frail.pids(module)) and pid not in frail.pids(module))
    frail.wait_ready()
    eventually(lambda: answers(frail))


def test_a_killed_gateway_comes_back_and_the_engine_drops_its_requests(frail: House) -> None:
    frail.wait_ready()
    stream = Stream(frail.url, LONG)
    assert stream.started.wait(60)
    (pid,) = frail.pids("gateway")
    os.kill(pid, signal.SIGKILL)
    stream.join()
    # A free port was asked for, so the new gateway binds another one.
    port_file = next(
        Path(value.removeprefix("PENSTOCK_PORT_FILE="))
        for value in _environment(frail.pids("engine_worker")[0])
        if value.startswith("PENSTOCK_PORT_FILE=")
    )
    old = frail.url

    def moved() -> bool:
        try:
            port = int(port_file.read_text(encoding="ascii"))
        except ValueError:
            return False
        frail.url = f"http://127.0.0.1:{port}"
        return frail.url != old or bool(frail.pids("gateway"))

    eventually(lambda: pid not in frail.pids("gateway") and bool(frail.pids("gateway")))
    eventually(moved)
    eventually(lambda: _ready_now(port_file, frail), 120)
    assert answers(frail)


def _environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")


def _ready_now(port_file: Path, house: House) -> bool:
    try:
        house.url = f"http://127.0.0.1:{int(port_file.read_text(encoding='ascii'))}"
        return httpx.get(f"{house.url}/ready", timeout=5, trust_env=False).status_code == 200
    except (httpx.TransportError, ValueError):
        return False


def _running(house: House) -> float:
    text = httpx.get(f"{house.url}/metrics", timeout=10, trust_env=False).text
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("penstock_requests_in_flight")
    ]
    return sum(values)


def test_a_client_that_leaves_is_aborted(frail: House) -> None:
    frail.wait_ready()
    url = f"{frail.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=LONG, timeout=60, trust_env=False) as reply:
        next(reply.iter_lines())
    eventually(lambda: _running(frail) == 0)
    assert answers(frail)


def test_a_supervisor_killed_with_9_takes_its_children_along(
    tmp_path: Path, cache_dir: Path
) -> None:
    house = start_house(tmp_path / "data", cache_dir, "--deterministic")
    children = psutil.Process(house.process.pid).children(recursive=True)
    run_dir = next(
        Path(value.removeprefix("PENSTOCK_RUN_DIR="))
        for value in _environment(children[0].pid)
        if value.startswith("PENSTOCK_RUN_DIR=")
    )
    assert len(children) >= 4
    assert run_dir.exists()
    house.process.kill()
    house.process.wait()
    assert house.process.stdout is not None
    house.process.stdout.close()
    eventually(lambda: not any(child.is_running() for child in children))
    assert not list(run_dir.glob("engine")), "socket files are left"


def test_ctrl_c_leaves_no_process_and_no_socket(tmp_path: Path, cache_dir: Path) -> None:
    house = start_house(tmp_path / "data", cache_dir, "--deterministic")
    children = psutil.Process(house.process.pid).children(recursive=True)
    run_dir = next(
        Path(value.removeprefix("PENSTOCK_RUN_DIR="))
        for value in _environment(children[0].pid)
        if value.startswith("PENSTOCK_RUN_DIR=")
    )
    stream = Stream(house.url, LONG)
    assert stream.started.wait(60)
    house.process.send_signal(signal.SIGINT)
    assert house.process.wait(60) == 0
    stream.join()
    assert len(stream.ends) == 1
    assert house.process.stdout is not None
    house.process.stdout.close()
    assert not any(child.is_running() for child in children)
    assert not run_dir.exists()


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
