"""`kill -9` of the supervisor while streams run: all of the deployment is gone soon, and starts
again; what starts is ended by a second Ctrl-C, which ends what runs and leaves nobody in the
dark."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.harness import Harness, eventually, start_harness
from tests.e2e.live_stream import LiveStream, ask
from tests.e2e.test_when_something_dies import LONG, metric, rows_of

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


@pytest.fixture
def successor(mortal: Harness, cache_dir: Path) -> Harness:
    """The one that takes the place of the deployment which others shared and which is killed now;
    it answers one request at a time, with programs that engines have unless they are
    deterministic."""
    arguments = ("--drain-timeout", "600")
    assert isinstance(mortal.process.args, list)
    if not set(arguments) <= set(mortal.process.args):
        kill_under_load(mortal)
        # At once, on the same data: no lock and no socket of the old one is in the way.
        started = start_harness(mortal.data_dir, cache_dir, *arguments, PENSTOCK_MAX_NUM_SEQS="1")
        mortal.process, mortal.url, mortal.output = started.process, started.url, started.output
    return mortal


def test_all_of_the_deployment_is_gone_soon_and_another_one_takes_its_place(
    successor: Harness,
) -> None:
    assert ask(successor.url, {**BODY, "max_tokens": 3}).status_code == 200


def is_draining(harness: Harness) -> bool:
    """Whether the first Ctrl-C has reached the gateway."""
    ready = httpx.get(f"{harness.url}/ready", timeout=10, trust_env=False).json()
    return bool(ready["status"] == "draining")


def used(harness: Harness, request_id: str) -> int:
    """Completion tokens of a request that are booked, or written down to be booked at the next
    start."""
    of_request = rows_of(harness, "SELECT lease_id FROM leases WHERE request_id = ?", request_id)
    query = "SELECT lease_id, completion_tokens FROM ledger WHERE request_id = ?"
    booked = rows_of(harness, query, request_id)
    lease_ids = {row[0] for row in (*of_request, *booked)}
    outbox = (harness.data_dir / "gateway-outbox.jsonl").read_text(encoding="utf-8")
    settles = [line["settle"] for line in map(json.loads, outbox.splitlines()) if "settle" in line]
    kept = [one["completion_tokens"] for one in settles if one["lease_id"] in lease_ids]
    return int(max([tokens for _, tokens in booked] + kept))


def test_at_a_second_ctrl_c_clients_are_told_and_what_was_used_is_kept(successor: Harness) -> None:
    body = {**LONG, "max_tokens": 1900}
    running = LiveStream(successor.url, body)
    running.wait_started()
    waiting: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: waiting.append(ask(successor.url, body)))
    asking.start()
    eventually(lambda: metric(successor, "penstock_gateway_requests_in_flight") == 2)
    successor.process.send_signal(signal.SIGINT)
    eventually(lambda: is_draining(successor))
    successor.process.send_signal(signal.SIGINT)
    assert successor.process.wait(60) == 0
    running.join()
    asking.join(60)
    assert running.error is None
    assert running.ends == ["error"]
    assert [answer.status_code for answer in waiting] == [503]
    request_id = running.chunks[0]["id"].removeprefix("chatcmpl-")
    assert used(successor, request_id) >= len(running.chunks) - 3
    log = (successor.data_dir.parent / "data.log").read_text(encoding="utf-8")
    assert "stopping: running requests have 590 s to finish" in log
