"""A real deployment for the end-to-end tests: `penstock serve` with the bundled model, and its
pids."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

START_TIMEOUT_S = 240.0


@dataclass
class Harness:
    """A running `penstock serve`."""

    process: subprocess.Popen[str]
    url: str
    data_dir: Path
    output: list[str]
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: object) -> Any:
        """An unmodified `openai.OpenAI` without retries of its own; untyped, since bodies here are
        plain."""
        settings = {"api_key": "any", "max_retries": 0, "timeout": 120.0, **options}
        client = openai.OpenAI(base_url=f"{self.url}/v1", **settings)  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def pids(self, module: str) -> list[int]:
        """Processes of the deployment that run `python -m module`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if child.cmdline()[1:3] == ["-m", module]:
                    found.append(child.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until `/health` is 200: everything is there."""
        eventually(lambda: _is_ready(self.url), timeout_s)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for a fact of another process, bounded."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)


def free_pair() -> int:
    """A free port whose successor is free, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def start_harness(data_dir: Path, cache_dir: Path, *arguments: str, **environment: str) -> Harness:
    """Start `penstock serve` on a free port and wait until it serves."""
    command = [
        sys.executable,
        "-m",
        "penstock",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
    ]
    command += ["--cache-dir", str(cache_dir), *arguments]
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **environment},
        )
    output: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        match = re.search(r"at (http://\S+)/v1", line)
        if match:
            harness = Harness(process, match[1], data_dir, output)
            harness.wait_ready()
            return harness
    process.wait()
    process.stdout.close()
    text = log.read_text(encoding="utf-8")
    raise AssertionError(f"penstock serve ended with {process.returncode}: {output}\n{text}")


def stop_harness(harness: Harness) -> int:
    """SIGTERM and wait; returns the exit code."""
    for client in harness.clients:
        client.close()
    harness.process.send_signal(signal.SIGTERM)
    try:
        return harness.process.wait(180)
    finally:
        if harness.process.poll() is None:
            harness.process.kill()
        if harness.process.stdout is not None:
            harness.process.stdout.close()
