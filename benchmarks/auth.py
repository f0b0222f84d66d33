"""How fast the auth worker decides and settles: in memory, on disk and over the wire.

`python -m benchmarks.auth [--requests 20000] [--rounds 3] [--directory DIR]` prints one table; the
directory decides which disk is measured. What is computed in memory is told per second of CPU time,
so that a machine with other work shows it too; everything is measured in each round in turn, and
the median is shown. Bare round trips over ZeroMQ of as many bytes are the floor of a question, and
rows of a ledger in transactions of 64, by SQLite alone, that of a settlement. What stands in for a
gateway runs on a gateway's event loop. Over the wire all keys were used before, some seconds ago.
"""

import argparse
import asyncio
import gc
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import Table, insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from auth_worker.clock import SystemClock
from auth_worker.decisions.authority import Authority, Rules
from auth_worker.errors import StoreError
from auth_worker.principals.keys import StoredKey, digest_of
from auth_worker.principals.limit_rules import Holder, Limit, Measure, Window
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from auth_worker.records.operations import AddKey, AuditEntry, BookUsage, Operation, Snapshot
from auth_worker.service import calm_collector
from auth_worker.storage import schema
from auth_worker.storage.committer import Committer, Delivery
from auth_worker.storage.sqlite_database import DATABASE_NAME
from auth_worker.storage.sqlite_store import SqliteStore
from benchmarks.round_trips import zeromq
from protocol.runtime.allocator import TRIM_INTERVAL_S
from protocol.runtime.child_environment import without_settings
from protocol.runtime.large_pages import LargePages
from protocol.wire.codec import auth_event_decoder, encode
from protocol.wire.messages import AuthEvent, Authorize, Granted, Settle, Settled
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer

SECRET = "psk-benchmark"  # noqa: S105 - a made-up key for a throw-away database
PYTHON_THREADS = ("main", "heap", "worker-io", "stall-watch", "commit", "ticker")
"""Of an auth worker, in the order in which they begin; the system knows them all as python."""
NUM_KEYS = 10_000
MANY_KEYS = 100_000
NUM_USED = 20_000
LIMIT_COLUMNS = (
    *("limit_id", "name", "holder", "holder_id", "measure", "amount", "is_hard", "rolls_over"),
    *("auto_renews", "raised_by"),
)
DIGEST = digest_of(SECRET)
KINDS = ("no limits", "2 limits of the key", "12 limits of four holders")
BARE = "bare round trip over ipc, 1 at a time"
AUTHORIZE = "over ipc: decision, 1 at a time"
GROUP = 64
Row = tuple[str, float, str]


def authorize(number: int, digest: bytes = DIGEST) -> Authorize:
    """One chat request's question."""
    return Authorize(
        request_id=f"req-{number}",
        key_digest=digest,
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


def limits_of_four() -> tuple[Limit, ...]:
    """Requests and tokens a minute and money a month, of key, user, team and deployment."""
    minute, month = Window("minute"), Window("calendar_month", "Europe/Berlin")
    holders: tuple[tuple[Holder, str], ...] = (
        ("key", "key_benchmark"),
        ("user", "user_1"),
        ("team", "team_1"),
        ("house", ""),
    )
    measures: tuple[tuple[Measure, Window], ...] = (
        ("requests", minute),
        ("tokens", minute),
        ("money", month),
    )
    return tuple(
        Limit(f"lim_{holder}_{measure}", measure, holder, holder_id, measure, 2**50, window)
        for holder, holder_id in holders
        for measure, window in measures
    )


def snapshot_of(kind: str) -> Snapshot:
    """One key: without limits, with two, or with twelve of four holders."""
    if kind == "no limits":
        return Snapshot(keys=(stored_key(None),), leases=(), recent=())
    if kind == "2 limits of the key":
        return Snapshot(keys=(stored_key(2**40),), leases=(), recent=())
    key = replace(stored_key(None), user_id="user_1", team_id="team_1")
    return Snapshot(
        keys=(key,),
        leases=(),
        recent=(),
        users=(StoredUser("user_1", "Ada"),),
        teams=(StoredTeam("team_1", "search", members={"user_1": "member"}),),
        limits=limits_of_four(),
        prices=(Price("price_1", 1, "*", 0, 1000, 500, 2000, 2000, 100),),
    )


def measure_decisions(num_requests: int, kind: str) -> list[Row]:
    """Decisions in memory, nothing written: alone, and with their settlements."""
    calm_collector()  # as the auth worker does at its start, and this a little later
    LargePages().look()
    emitted: list[Operation] = []
    authority = Authority(
        epoch=1,
        snapshot=snapshot_of(kind),
        rules=Rules(),
        clock=SystemClock(),
        emit=emitted.append,
    )
    commands = [authorize(number) for number in range(num_requests)]
    leases: list[Granted] = []
    begin = time.process_time()
    for command in commands:
        answer = authority.authorize(command)
        assert isinstance(answer, Granted)
        leases.append(answer)
    decided_s = time.process_time() - begin
    settles = [settle(lease.lease_id, lease.request_id) for lease in leases]
    begin = time.process_time()
    for settlement in settles:
        authority.settle(settlement)
    settled_s = time.process_time() - begin
    return [
        (f"decision in memory, {kind}", num_requests / decided_s, "of CPU"),
        (
            f"decision + settlement in memory, {kind}",
            num_requests / (decided_s + settled_s),
            "of CPU",
        ),
    ]


def measure_bare(num_requests: int) -> Row:
    """The floor of a question: bare round trips over ZeroMQ, one at a time."""
    asked = len(encode(authorize(1)))
    granted = Granted(
        request_id="req-1", lease_id="lease", tenant="tenant", key_id="key_1", role="user"
    )
    answered = len(encode(granted))
    waits_s = zeromq(asked, answered, num_requests, 0.0)
    p50_s, p99_s = waits_s[len(waits_s) // 2], waits_s[len(waits_s) * 99 // 100]
    details = f"p50 {p50_s * 1e6:.0f} us, p99 {p99_s * 1e6:.0f} us"
    return (
        BARE,
        len(waits_s) / sum(waits_s),
        details,
    )


def measure_bare_commits(num_requests: int, directory: Path) -> Row:
    """The floor of a settlement: rows of the ledger, 64 a durable transaction, nothing else."""
    directory.mkdir()
    connection = sqlite3.connect(directory / "bare.sqlite3", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(str(CreateTable(schema.ledger).compile(dialect=sqlite.dialect())))
    marks = ", ".join("?" * len(BookUsage._fields))
    begin = time.perf_counter()
    for first in range(0, num_requests, GROUP):
        connection.execute("BEGIN IMMEDIATE")
        rows = [booking_of(number, 0) for number in range(first, first + GROUP)]
        connection.executemany(f"INSERT INTO ledger VALUES ({marks})", rows)  # noqa: S608 - ours
        connection.execute("COMMIT")
    elapsed_s = time.perf_counter() - begin
    connection.close()
    num_rows = -(-num_requests // GROUP) * GROUP
    return (f"SQLite alone, {GROUP} rows a transaction", num_rows / elapsed_s, "")


def booking_of(number: int, now_ms: int) -> BookUsage:
    """What a settlement of `key_benchmark` writes."""
    return BookUsage(
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
        committer.submit(booking_of(number, now_ms), lambda result: None)
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


def resident_bytes() -> int:
    """What this process has in memory; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_start(directory: Path) -> Row:
    """A database of very many keys: opened, read and ready to decide, and what a key takes."""
    fill(directory, MANY_KEYS)
    gc.collect()
    before = resident_bytes()
    begin = time.process_time()
    store = SqliteStore(directory, clock=SystemClock())
    snapshot = store.load(recent_since_ms=0)
    authority = Authority(
        epoch=store.epoch,
        snapshot=snapshot,
        rules=Rules(),
        clock=SystemClock(),
        emit=lambda _operation: None,
    )
    started_s = time.process_time() - begin
    del snapshot
    gc.collect()
    at_rest = resident_bytes()
    for number in range(NUM_USED):
        answer = authority.authorize(authorize(number, digest_of(f"{SECRET}-{number}")))
        assert isinstance(answer, Granted)
        authority.settle(settle(answer.lease_id, answer.request_id))
    gc.collect()
    used = resident_bytes()
    store.close()
    return (
        f"start with {MANY_KEYS:,} keys",
        MANY_KEYS / started_s,
        f"{started_s:.1f} s of CPU; {(at_rest - before) / MANY_KEYS:,.0f} bytes a key,"
        f" {(used - at_rest) / NUM_USED:,.0f} more once it was used",
    )


def measure_reading(directory: Path) -> Row:
    """The floor of a start: SQLite alone reads all that a key may be, and nothing else is done."""
    connection = sqlite3.connect(directory / DATABASE_NAME)
    begin_cpu, begin = time.process_time(), time.perf_counter()
    rows = connection.execute("SELECT * FROM keys").fetchall()
    elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    connection.close()
    return (
        f"SQLite alone, {len(rows):,} keys read",
        len(rows) / elapsed_s,
        f"{elapsed_s:.1f} s, {cpu_s:.1f} of CPU",
    )


def fill(directory: Path, num_keys: int = NUM_KEYS) -> None:
    """A database of many keys of one team, each with limits of its own, under budgets of others."""
    store = SqliteStore(directory, clock=SystemClock())
    made = {"created_at": 0, "created_by": ""}
    keys = [
        {
            "key_id": f"key_{number}",
            "digest": digest_of(f"{SECRET}-{number}"),
            "hint": "psk-be…mark",
            "name": "benchmark",
            "role": "user",
            "tenant": "default",
            "requests_per_minute": 2**40,
            "tokens_per_minute": 2**40,
            "user_id": "user_1",
            "team_id": "team_1",
            **made,
        }
        for number in range(num_keys)
    ]
    limits = [
        {
            **{name: getattr(limit, name) for name in LIMIT_COLUMNS},
            "window": limit.window.kind,
            "time_zone": limit.window.time_zone,
            **made,
        }
        for limit in limits_of_four()
        if limit.holder != "key"
    ]
    price = {"price_id": "price_1", "version": 1, "models": "*", "valid_from_ms": 0, "request": 0}
    user = {"user_id": "user_1", "email": "", "role": "user", "kind": "person"}
    member = {"team_id": "team_1", "user_id": "user_1", "role": "member", "added_at": 0}
    rows: list[tuple[Table, list[dict[str, Any]]]] = [
        (schema.users, [user | {"name": "Ada"} | made]),
        (schema.teams, [{"team_id": "team_1", "name": "t", "tenant_is_shared": False} | made]),
        (schema.team_members, [member]),
        (schema.limits, limits),
        (schema.prices, [price | {"prompt": 1000, "completion": 2000, "is_ended": False} | made]),
        (schema.keys, keys),
    ]
    with store.database.transaction() as connection:
        for table, values in rows:
            connection.execute(insert(table), values)
    store.close()


class WireClient:
    """Stands in for a gateway: authorizes, settles, and times both."""

    def __init__(self, endpoint: str) -> None:
        self.digests = [digest_of(f"{SECRET}-{number}") for number in range(NUM_KEYS)]
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
        )
        self.server.start(
            asyncio.get_running_loop(), on_event=self._on_event, on_peer=self._on_peer
        )

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
            command = authorize(self.num_to_ask, self.digests[self.num_to_ask % NUM_KEYS])
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


async def start_worker(endpoint: str, data_dir: Path) -> asyncio.subprocess.Process:
    """An auth worker process that dials the endpoint."""
    environ = {
        **without_settings(os.environ),
        "PENSTOCK_AUTH_ENDPOINT": endpoint,
        "PENSTOCK_DATA_DIR": str(data_dir),
        "PENSTOCK_ALLOW_ANONYMOUS": "false",
        "PENSTOCK_LOG_LEVEL": "error",
    }
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "auth_worker", env=environ)


async def measure_ready(data_dir: Path, endpoint: str) -> Row:
    """A process is started on very many keys, until a gateway hears that it decides."""
    client = WireClient(endpoint)
    begin = time.perf_counter()
    worker = await start_worker(endpoint, data_dir)
    try:
        await asyncio.wait_for(client.ready.get(), 120)
        elapsed_s = time.perf_counter() - begin
        cpu_s = sum(cpu_us_by_thread(worker.pid).values()) / 1e6
    finally:
        client.server.close()
        worker.terminate()
        await asyncio.wait_for(worker.wait(), 30)
    return (
        f"process ready with {MANY_KEYS:,} keys",
        MANY_KEYS / elapsed_s,
        f"{elapsed_s:.1f} s, {cpu_s:.1f} of CPU",
    )


async def measure_wire(num_requests: int, directory: Path) -> list[Row]:
    """The same through a real auth worker process over ipc, with the limits of four holders."""
    fill(directory / "data")
    endpoint = f"ipc://{directory}/auth"
    client = WireClient(endpoint)
    worker = await start_worker(endpoint, directory / "data")
    try:
        client.peer = await asyncio.wait_for(client.ready.get(), 30)
        client.worker_pid = worker.pid
        few = max(1, num_requests // 10)
        await client.measure("", NUM_KEYS, 256, settles=True)  # so that every key was used
        await asyncio.sleep(TRIM_INTERVAL_S + 1.0)  # and lies in large pages
        return [
            await client.measure(AUTHORIZE, few, 1, settles=False),
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


def measure_all(num_requests: int, directory: Path) -> list[Row]:
    """Everything once."""
    return [
        *(row for kind in KINDS for row in measure_decisions(num_requests, kind)),
        *(
            measure_commits(num_requests, directory / str(waiting), waiting)
            for waiting in (64, 1024)
        ),
        measure_bare_commits(num_requests, directory / "bare"),
        measure_start(directory / "many"),
        measure_reading(directory / "many"),
        uvloop.run(measure_ready(directory / "many", f"ipc://{directory}/ready")),
        measure_bare(max(1, num_requests // 10)),
        *uvloop.run(measure_wire(num_requests, directory)),
    ]


def p50_us(rows: Sequence[Row], label: str) -> float:
    """The median wait of a row that tells it."""
    (details,) = (details for name, _, details in rows if name == label)
    return float(details.removeprefix("p50 ").split()[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--directory", help="on the disk to measure; a temporary one if absent")
    options = parser.parse_args(arguments)
    rounds: list[list[Row]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="pst-", dir=options.directory) as name:
            rounds.append(measure_all(options.requests, Path(name)))
    rows = [sorted(row, key=lambda one: one[1])[len(row) // 2] for row in zip(*rounds, strict=True)]
    print(f"| {'what':<56} | {'per second':>10} | {'details':<28} |")
    print(f"|{'-' * 58}|{'-' * 11}:|{'-' * 30}|")
    for label, rate, details in rows:
        print(f"| {label:<56} | {rate:>10,.0f} | {details:<28} |")
    ratios = sorted(p50_us(row, AUTHORIZE) / p50_us(row, BARE) for row in rounds)
    listed = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    print(f"p50 of a decision over ipc, by a bare round trip of its round: {listed}")


if __name__ == "__main__":
    main()
