"""How soon a long batch begins, and what the gateway holds of it.

    python -m benchmarks.batch_start [--lines 10000] [--rounds 3] [--seconds 5]

One Penstock (gateway, auth worker with a real key, parser, a scripted engine) gets a file of that
many chat lines and a batch of it. Told are, a row a round: the seconds of the upload; those from
the batch's making until its lines are checked and begin, and until the first answer is counted,
which happens once a second; how many were answered in so many seconds; and by how much the
gateway's resident memory has grown at most since before the upload. The gateway has run a short
batch before; each long one is cancelled and waited for.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.gateway_peers.processes import CHAT, Cores, Processes, Server, start_penstock

_MODEL: Final = "scripted"
_PATH: Final = "/v1/chat/completions"
_LOOK_S: Final = 0.01
_ENDED: Final = ("completed", "cancelled", "failed", "expired")


class Client:
    """Files and batches of one server.

    Args:
        server: Started.
    """

    def __init__(self, server: Server) -> None:
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{server.port}",
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=60,
            trust_env=False,
        )
        self._gateway = psutil.Process(server.pids["gateway"])
        self.most_bytes = 0

    def rss_bytes(self) -> int:
        """The gateway's resident memory; the most of it is noted."""
        found = int(self._gateway.memory_info().rss)
        self.most_bytes = max(self.most_bytes, found)
        return found

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """The answer, which must be a good one."""
        answer = self._http.post(path, **fields)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def upload(self, num_lines: int) -> str:
        """The id of a new input."""
        body = {"model": _MODEL, "messages": CHAT}
        lines = [
            json.dumps({"custom_id": f"c{number}", "method": "POST", "url": _PATH, "body": body})
            for number in range(num_lines)
        ]
        form = {"file": ("in.jsonl", "\n".join(lines).encode()), "purpose": (None, "batch")}
        return str(self.post("/v1/files", files=form)["id"])

    def begin(self, file_id: str) -> str:
        """The id of a new batch."""
        asked = {"input_file_id": file_id, "endpoint": _PATH, "completion_window": "24h"}
        return str(self.post("/v1/batches", json=asked)["id"])

    def look(self, batch_id: str) -> dict[str, Any]:
        """A batch, and the memory beside it."""
        self.rss_bytes()
        found: dict[str, Any] = self._http.get(f"/v1/batches/{batch_id}").json()
        return found

    def wait(self, batch_id: str) -> None:
        """Until a batch has ended."""
        while self.look(batch_id)["status"] not in _ENDED:
            time.sleep(_LOOK_S)


def measure(client: Client, num_lines: int, seconds: float) -> str:
    """One round, as cells of a row."""
    before = client.most_bytes = client.rss_bytes()
    started = time.perf_counter()
    file_id = client.upload(num_lines)
    uploaded = time.perf_counter()
    batch_id = client.begin(file_id)
    while client.look(batch_id)["status"] == "validating":
        time.sleep(_LOOK_S)
    begun = time.perf_counter()
    while client.look(batch_id)["request_counts"]["completed"] == 0:
        time.sleep(_LOOK_S)
    first = time.perf_counter()
    while time.perf_counter() < first + seconds:
        batch = client.look(batch_id)
        time.sleep(_LOOK_S)
    client.post(f"/v1/batches/{batch_id}/cancel")
    client.wait(batch_id)
    grown = (client.most_bytes - before) / 1e6
    num_answered = batch["request_counts"]["completed"]
    took_s = (uploaded - started, begun - uploaded, first - uploaded)
    times = " | ".join(f"{one:.2f}" for one in took_s)
    return f"{times} | {num_answered} | {grown:.0f} MB"


def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="pst-") as folder,
        Processes(Cores("none")) as processes,
    ):
        server = start_penstock(processes, Path(folder) / "p", num_tokens=16, models={_MODEL: 0.0})
        client = Client(server)
        client.wait(client.begin(client.upload(100)))
        print("| round | upload, s | begins after, s | first answer after, s | answered | memory |")
        print("|---|---|---|---|---|---|")
        for number in range(args.rounds):
            print(f"| {number + 1} | {measure(client, args.lines, args.seconds)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
