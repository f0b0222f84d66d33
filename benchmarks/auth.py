"""How fast the auth worker decides and settles: in memory, on disk and over the wire.

`python -m benchmarks.auth [--requests 20000] [--directory DIR]` prints one table; the directory
decides which disk is measured.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from auth_worker.clock import SystemClock
from auth_worker.decisions.authority import Authority, Rules
from auth_worker.errors import StoreError
from auth_worker.principals.keys import StoredKey, digest_of
from auth_worker.records.operations import AddKey, AuditEntry, BookUsage, Operation, Snapshot
from auth_worker.storage.committer import Committer, Delivery
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.codec import auth_event_decoder
from protocol.wire.messages import AuthEvent, Authorize, Granted, Settle, Settled
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer

SECRET = "psk-benchmark"  # noqa: S105 - a made-up key for a throw-away database
PYTHON_THREADS = ("main", "commit", "worker-io", "ticker")
"""Of an auth worker, in the order in which they begin; the system knows them all as python."""
Row = tuple[str, float, str]


def authorize(number: int) -> Authorize:
    """One chat request's question."""
    return Authorize(
        request_id=f"req-{number}",
        key_digest=digest_of(SECRET),
        endpoint="/v1/chat/completions",
        model="penstock-demo",
        prompt_tokens=500,
        completion_tokens=500,
        scope="chat.completions",
        asked_tokens=500,
    )


def settle(lease_id: str, request_id: str) -> Settle:
    """One chat request's end."""
    return Settle(
        lease_id=lease_id, request_id=request_id, prompt_tokens=400, completion_tokens=300
    )


def stored_key(limit: int | None) -> StoredKey:
    """The key that all requests use."""
    return StoredKey(
        key_id="key_benchmark",
        digest=digest_of(SECRET),
        hint="psk-be…mark",
        name="benchmark",
        role="user",
        tenant="default",
        created_at=0,
        requests_per_minute=limit,
        tokens_per_minute=limit,
    )


def measure_decisions(num_requests: int, limit: int | None) -> Row:
    """Authorize and settle in memory, nothing written."""
    emitted: list[Operation] = []
    authority = Authority(
        epoch=1,
        snapshot=Snapshot(keys=(stored_key(limit),), leases=(), recent=()),
        rules=Rules(),
        clock=SystemClock(),
        emit=emitted.append,
    )
    commands = [authorize(number) for number in range(num_requests)]
    begin = time.perf_counter()
    for command in commands:
        answer = authority.authorize(command)
        assert isinstance(answer, Granted)
        authority.settle(settle(answer.lease_id, command.request_id))
    elapsed_s = time.perf_counter() - begin
    kind = "no limits" if limit is None else "requests and tokens limited"
    return (f"authorize + settle in memory, {kind}", num_requests / elapsed_s, "")


def measure_commits(num_requests: int, directory: Path, num_in_flight: int) -> Row:
    """Settlements made durable by the commit thread, so many waiting at a time."""
    store = SqliteStore(directory, clock=SystemClock())
    audit = AuditEntry(0, "", "key_created", "key_benchmark")
    store.apply([AddKey(stored_key(None), audit)])
    free = threading.Semaphore(num_in_flight)
    lost: list[StoreError] = []

    def deliver(delivery: Delivery) -> None:
        free.release(len(delivery))

    committer = Committer(store, deliver=deliver, on_fatal=lost.append)
    committer.start()
    now_ms = int(time.time() * 1000)
    begin = time.perf_counter()
    for number in range(num_requests):
        free.acquire()
        booking = BookUsage(
            lease_id=f"lease:000001:{number:010x}:key_benchmark:penstock-demo",
            request_id=f"req-{number}",
            key_id="key_benchmark",
            model="penstock-demo",
            prompt_tokens=400,
            completion_tokens=300,
            cached_tokens=0,
            reasoning_tokens=0,
            outcome="finished",
            granted_at_ms=now_ms,
            settled_at_ms=now_ms,
        )
        committer.submit(booking, lambda result: None)
    assert committer.close(60.0)
    elapsed_s = time.perf_counter() - begin
    assert not lost
    store.close()
    per_group = num_requests / committer.num_groups
    return (
        f"durable settlements, {num_in_flight} waiting",
        num_requests / elapsed_s,
        f"{per_group:.0f} a commit",
    )


def cpu_us_by_thread(pid: int) -> dict[str, float]:
    """CPU time of each thread of a process so far, microseconds; empty where there is no /proc.

    https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
    """
    used_us: dict[str, float] = {}
    python_names = iter(PYTHON_THREADS)
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda task: int(task.name)):
        name = (task / "comm").read_text().strip()
        if name.startswith("python"):
            name = next(python_names, name)
        used_us[name] = int((task / "schedstat").read_text().split()[0]) / 1000
    return used_us


class WireClient:
    """Stands in for a gateway: authorizes, settles, and times both."""

    def __init__(self, endpoint: str) -> None:
        self.ready: asyncio.Queue[Peer] = asyncio.Queue()
        self.peer: Peer
        self.worker_pid = 0
        self.asked_s: dict[str, float] = {}
        self.waits_s: list[float] = []
        self.num_left = 0
        self.num_to_ask = 0
        self.settles = False
        self.done = asyncio.Event()
        self.server = RoleServer(
            "auth",
            endpoint,
            auth_event_decoder(),
            instance_id="benchmark",
            on_event=self._on_event,
            on_peer=self._on_peer,
        )
        self.server.start(asyncio.get_running_loop())

    async def measure(
        self, label: str, num_requests: int, num_in_flight: int, *, settles: bool
    ) -> Row:
        """Run so many requests, so many at a time; each ends with Granted or with Settled."""
        peer = self.peer
        before_us = cpu_us_by_thread(self.worker_pid)
        self.asked_s, self.waits_s = {}, []
        self.num_left = self.num_to_ask = num_requests
        self.settles = settles
        self.done.clear()
        begin = time.perf_counter()
        for _ in range(num_in_flight):
            self._ask(peer)
        await asyncio.wait_for(self.done.wait(), 300)
        elapsed_s = time.perf_counter() - begin
        ordered = sorted(self.waits_s)
        p50_us = ordered[len(ordered) // 2] * 1e6
        p99_us = ordered[len(ordered) * 99 // 100] * 1e6
        used_us = {
            name: (us - before_us.get(name, 0.0)) / num_requests
            for name, us in cpu_us_by_thread(self.worker_pid).items()
        }
        cpu = ", ".join(f"{name} {us:.0f}" for name, us in used_us.items() if us >= 0.5)
        details = f"p50 {p50_us:.0f} us, p99 {p99_us:.0f} us; CPU us a request: {cpu}"
        return (label, num_requests / elapsed_s, details)

    def _ask(self, peer: Peer) -> None:
        if self.num_to_ask:
            command = authorize(self.num_to_ask)
            self.num_to_ask -= 1
            self.asked_s[command.request_id] = time.perf_counter()
            self.server.send(peer, command)

    def _on_event(self, peer: Peer, event: AuthEvent) -> None:
        if isinstance(event, Granted):
            asked_s = self.asked_s.pop(event.request_id)
            if self.settles:
                self.asked_s[event.lease_id] = asked_s
                self.server.send(peer, settle(event.lease_id, event.request_id))
                return
        elif isinstance(event, Settled):
            asked_s = self.asked_s.pop(event.lease_id)
        else:
            raise TypeError(f"unexpected {event}")
        self.waits_s.append(time.perf_counter() - asked_s)
        self.num_left -= 1
        if self.num_left == 0:
            self.done.set()
        self._ask(peer)

    def _on_peer(self, event: PeerEvent) -> None:
        if event.kind == "ready":
            self.ready.put_nowait(event.peer)


async def measure_wire(num_requests: int, directory: Path) -> list[Row]:
    """The same through a real auth worker process over ipc."""
    endpoint = f"ipc://{directory}/auth"
    client = WireClient(endpoint)
    environ = {
        **os.environ,
        "PENSTOCK_AUTH_ENDPOINT": endpoint,
        "PENSTOCK_DATA_DIR": str(directory / "data"),
        "PENSTOCK_ALLOW_ANONYMOUS": "true",
        "PENSTOCK_LOG_LEVEL": "warning",
    }
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "auth_worker", env=environ)
    try:
        client.peer = await asyncio.wait_for(client.ready.get(), 30)
        client.worker_pid = worker.pid
        few = max(1, num_requests // 10)
        return [
            await client.measure("over ipc: decision, 1 at a time", few, 1, settles=False),
            await client.measure(
                "over ipc: decision, 64 at a time", num_requests, 64, settles=False
            ),
            await client.measure(
                "over ipc: decision + durable settlement, 1 at a time", few, 1, settles=True
            ),
            await client.measure(
                "over ipc: decision + durable settlement, 64 at a time",
                num_requests,
                64,
                settles=True,
            ),
            await client.measure(
                "over ipc: decision + durable settlement, 256 at a time",
                num_requests,
                256,
                settles=True,
            ),
        ]
    finally:
        client.server.close()
        worker.terminate()
        await asyncio.wait_for(worker.wait(), 30)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each measurement")
    parser.add_argument("--directory", help="on the disk to measure; a temporary one if absent")
    options = parser.parse_args(arguments)
    num_requests: int = options.requests
    with tempfile.TemporaryDirectory(prefix="pst-", dir=options.directory) as name:
        directory = Path(name)
        rows = [
            measure_decisions(num_requests, None),
            measure_decisions(num_requests, 2**40),
            *(
                measure_commits(num_requests, directory / str(waiting), waiting)
                for waiting in (64, 1024)
            ),
            *asyncio.run(measure_wire(num_requests, directory)),
        ]
    print(f"| {'what':<56} | {'per second':>10} | {'details':<28} |")
    print(f"|{'-' * 58}|{'-' * 11}:|{'-' * 30}|")
    for label, rate, details in rows:
        print(f"| {label:<56} | {rate:>10,.0f} | {details:<28} |")


if __name__ == "__main__":
    main()
