"""`penstock serve --gateways 2`: one port, two processes; one is killed and the other goes on."""

import os
import re
import signal
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.harness import Harness, eventually

pytestmark = pytest.mark.process
BODY: dict[str, Any] = {
    "model": "tiny-F32",
    "messages": [{"role": "user", "content": "What is 2 + 3?"}],
    "temperature": 0,
    "max_tokens": 8,
}


def answering_pid(url: str) -> int:
    """The gateway that takes a new connection; 0 while none does."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text
    except httpx.TransportError:
        return 0
    (pid,) = re.findall(r'^penstock_gateway_info\{.*pid="(\d+)".*\} 1\.0$', text, re.MULTILINE)
    return int(pid)


def wait_for_both(harness: Harness) -> set[int]:
    """Until each of two gateways has answered."""
    seen: set[int] = set()

    def has_both() -> bool:
        seen.add(answering_pid(harness.url))
        return {*harness.pids("gateway")} <= seen and len(harness.pids("gateway")) == 2

    eventually(has_both, 120)
    return {*harness.pids("gateway")}


def test_each_gateway_is_scraped_at_a_port_of_its_own(pair: Harness, metrics_port: int) -> None:
    both = wait_for_both(pair)
    urls = [f"http://127.0.0.1:{port}" for port in (metrics_port, metrics_port + 1)]
    pids = [answering_pid(url) for url in urls]
    assert set(pids) == both
    for url, pid in zip(urls, pids, strict=True):
        assert {answering_pid(url) for _ in range(4)} == {pid}
        assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY, trust_env=False).is_error

    def num_answered() -> float:
        texts = (httpx.get(f"{url}/metrics", trust_env=False).text for url in urls)
        series = (
            r'^penstock_gateway_http_requests_total\{.*chat/completions.*status="200".*\} (.*)$'
        )
        found = (re.findall(series, text, re.MULTILINE) for text in texts)
        return sum(float(one) for each in found for one in each)

    before = num_answered()
    for _ in range(6):
        # A connection each, of whichever gateway.
        httpx.post(f"{pair.url}/v1/chat/completions", json=BODY, timeout=60, trust_env=False)
    assert num_answered() == before + 6


def test_one_port_is_served_by_both_and_by_the_one_that_is_left(pair: Harness) -> None:
    both = wait_for_both(pair)
    client = pair.client(max_retries=5)
    made = client.responses.create(model="tiny-F32", input="Hi", max_output_tokens=4)
    killed = answering_pid(pair.url)
    os.kill(killed, signal.SIGKILL)
    # Not `pids`: a process that ends has no command line any more while it still has its sockets.
    eventually(lambda: not psutil.pid_exists(killed))
    (left,) = both - {killed}
    # Whoever was connected to it connects anew, and finds what it had stored.
    texts = set()
    for _ in range(6):
        answer = httpx.post(
            f"{pair.url}/v1/chat/completions", json=BODY, timeout=60, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        texts.add(answer.json()["choices"][0]["message"]["content"])
    assert len(texts) == 1
    assert pair.client(max_retries=5).responses.retrieve(made.id).output_text == made.output_text
    again = wait_for_both(pair)
    assert left in again
    assert killed not in again
    # One that is told to stop drains, and the supervisor starts another one.
    os.kill(left, signal.SIGTERM)
    for _ in range(6):
        assert pair.client(max_retries=5).chat.completions.create(**BODY).choices
    eventually(lambda: left not in pair.pids("gateway"))
    assert left not in wait_for_both(pair)
