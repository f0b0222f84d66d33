"""A second Ctrl-C of `penstock serve` ends what runs at once, and nobody is left in the dark."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Harness, eventually, start_harness, stop_harness
from tests.e2e.live_stream import LiveStream, ask
from tests.e2e.test_when_something_dies import LONG, metric, rows_of

pytestmark = pytest.mark.process

BODY: dict[str, Any] = {**LONG, "max_tokens": 1900}


def is_draining(harness: Harness) -> bool:
    """Whether the first Ctrl-C has reached the gateway."""
    ready = httpx.get(f"{harness.url}/ready", timeout=10, trust_env=False).json()
    return bool(ready["status"] == "draining")


def used(harness: Harness) -> int:
    """Completion tokens that are booked, or written down to be booked at the next start."""
    booked = rows_of(harness, "SELECT completion_tokens FROM ledger")
    outbox = (harness.data_dir / "gateway-outbox.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in outbox.splitlines()]
    kept = [line["settle"]["completion_tokens"] for line in lines if "settle" in line]
    return int(max([tokens for (tokens,) in booked] + kept))


def test_clients_are_told_and_what_was_used_is_kept(tmp_path: Path, cache_dir: Path) -> None:
    harness = start_harness(
        tmp_path / "data", cache_dir, "--drain-timeout", "600", PENSTOCK_MAX_NUM_SEQS="1"
    )
    try:
        running = LiveStream(harness.url, BODY)
        running.wait_started()
        waiting: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: waiting.append(ask(harness.url, BODY)))
        asking.start()
        eventually(lambda: metric(harness, "penstock_gateway_requests_in_flight") == 2)
        harness.process.send_signal(signal.SIGINT)
        eventually(lambda: is_draining(harness))
        harness.process.send_signal(signal.SIGINT)
        assert harness.process.wait(60) == 0
        running.join()
        asking.join(60)
    finally:
        stop_harness(harness)
    assert running.error is None
    assert running.ends == ["error"]
    assert [answer.status_code for answer in waiting] == [503]
    assert used(harness) >= len(running.chunks) - 3
    log = (tmp_path / "data.log").read_text(encoding="utf-8")
    assert "stopping: running requests have 590 s to finish" in log
