"""`kill -9` of the supervisor while streams run: all of the deployment is gone soon, and starts
again."""

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.harness import Harness, start_harness, stop_harness
from tests.e2e.live_stream import LiveStream, ask

pytestmark = pytest.mark.process

NUM_POLLS = 100
POLL_S = 0.1
BODY: dict[str, Any] = {
    "model": "penstock-demo",
    "messages": [{"role": "user", "content": "Count from 1 to 100."}],
    "ignore_eos": True,
    "max_tokens": 1500,
}
WITH_TOOLS = {
    **BODY,
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    ],
}


def kill_under_load(harness: Harness) -> None:
    """Streams that need engine, parser and another slice of their lease; then kill -9."""
    children = psutil.Process(harness.process.pid).children(recursive=True)
    assert len(children) >= 4
    run_dir = next(
        Path(entry.partition("=")[2])
        for entry in Path(f"/proc/{children[0].pid}/environ").read_text("utf-8").split("\0")
        if entry.startswith("PENSTOCK_RUN_DIR=")
    )
    streams = [LiveStream(harness.url, body) for body in (BODY, WITH_TOOLS) for _ in range(4)]
    for stream in streams:
        stream.wait_started()
    harness.process.send_signal(signal.SIGKILL)
    harness.process.wait()
    for _ in range(NUM_POLLS):
        left = [child for child in children if child.is_running()]
        if not left:
            break
        time.sleep(POLL_S)
    assert not left
    assert not run_dir.exists()
    for stream in streams:
        stream.join()
        assert len(stream.ends) == 1, (
            "a stream has one end, an error of the deployment's or its own"
        )
    assert harness.process.stdout is not None
    harness.process.stdout.close()


def test_all_of_the_deployment_is_gone_soon_and_another_one_takes_its_place(
    tmp_path: Path, cache_dir: Path
) -> None:
    kill_under_load(start_harness(tmp_path / "data", cache_dir))
    # At once, on the same data: no lock and no socket of the old one is in the way.
    harness = start_harness(tmp_path / "data", cache_dir)
    try:
        assert ask(harness.url, {**BODY, "max_tokens": 3}).status_code == 200
    finally:
        assert stop_harness(harness) == 0
