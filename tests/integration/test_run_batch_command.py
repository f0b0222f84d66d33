"""`penstock run-batch` as a process that is killed: nothing that was answered is lost or asked
again."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

NUM_REQUESTS = 1000
CONCURRENCY = 8


class Server(ThreadingHTTPServer):
    """Answers `num_free` requests and keeps the others waiting until it is opened."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, num_free: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._num_free = num_free
        self._is_open = threading.Event()

    def open(self) -> None:
        self._is_open.set()

    def note(self, name: str) -> None:
        """Count a request; returns once it may be answered."""
        with self._lock:
            self.asked[name] += 1
            self._num_free -= 1
            is_free = self._num_free >= 0
        if not is_free:
            self._is_open.wait()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.note(body["prompt"])
        reply = json.dumps({"echo": body["prompt"]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Not in the tests' output."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(num_free=400) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.open()
        server.shutdown()
        thread.join()


def start(source: Path, target: Path, server: Server) -> subprocess.Popen[str]:
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-m", "penstock", "run-batch", str(source), str(target)]
    command += ["--url", url, "--concurrency", str(CONCURRENCY)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_in_the_middle_it_goes_on_and_asks_only_what_was_in_flight_again(
    tmp_path: Path, server: Server
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    names = [f"q{number}" for number in range(NUM_REQUESTS)]
    source.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": name,
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": {"prompt": name},
                }
            )
            + "\n"
            for name in names
        ),
        encoding="utf-8",
    )
    first = start(source, target, server)
    for _ in range(6_000):
        if num_lines(target) == 400 and sum(server.asked.values()) == 400 + CONCURRENCY:
            break
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert num_lines(target) == 400
    # What a kill in the middle of a write leaves.
    with target.open("ab") as file:
        file.write(b'{"id": "batch_req_00", "custom_id": "q9')

    server.open()
    second = start(source, target, server)
    _, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "600 answered, 0 failed, 400 were answered before" in told
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [answer["custom_id"] for answer in answers] == names
    assert all(a["response"]["body"] == {"echo": a["custom_id"]} for a in answers)
    again = [name for name, count in server.asked.items() if count > 1]
    assert len(again) == CONCURRENCY
    assert max(server.asked.values()) == 2

    third = start(source, target, server)
    third.communicate(timeout=120)
    assert third.returncode == 0
    assert sum(server.asked.values()) == NUM_REQUESTS + CONCURRENCY
