"""The real auth worker process over ipc: kill -9 loses nothing acknowledged, one owner, clean
ends."""

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from auth_worker.principals.keys import digest_of
from protocol.errors import ErrorCode
from protocol.wire.codec import auth_event_decoder
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    AuthEvent,
    Authorize,
    CreateKey,
    Denied,
    Granted,
    KeyRecord,
    Keys,
    LeaseReport,
    ListKeys,
    Message,
    Renew,
    Settle,
    Settled,
)
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer
from tests.fakes.fork_server import AUTH_WORKER, Forked

pytestmark = pytest.mark.process

ADMIN_SECRET = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"
USER_SECRET = "psk-user-of-the-integration-test"
WAIT_S = 60.0


class Harness:
    """A gateway's auth socket, and auth workers that come and go on one data directory."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.endpoint = f"ipc://{directory}/auth"
        self.events: asyncio.Queue[AuthEvent] = asyncio.Queue()
        self.ready: asyncio.Queue[Peer] = asyncio.Queue()
        self.worker: Forked | None = None
        self.peer: Peer | None = None
        self._server = RoleServer(
            "auth",
            self.endpoint,
            auth_event_decoder(),
            instance_id="gateway-test",
            heartbeat_interval_s=0.1,
        )
        self._server.start(
            asyncio.get_running_loop(),
            on_event=lambda peer, event: self.events.put_nowait(event),
            on_peer=self._on_peer,
        )

    def _on_peer(self, event: PeerEvent) -> None:
        if event.kind == "ready":
            self.ready.put_nowait(event.peer)

    def start_worker(self, max_file_bytes: int = -1, /, **settings: str) -> Forked:
        """Start a worker whose files can't grow beyond a size, as on a disk without room."""
        environ = {
            **os.environ,
            "PENSTOCK_AUTH_ENDPOINT": self.endpoint,
            "PENSTOCK_DATA_DIR": str(self.data_dir),
            **settings,
        }
        return Forked(
            "auth_worker",
            preloaded=AUTH_WORKER,
            environ=environ,
            stderr=subprocess.PIPE,
            max_file_bytes=max_file_bytes,
        )

    async def begin(self, **settings: str) -> None:
        """Start the worker and wait until it takes commands."""
        self.worker = self.start_worker(**settings)
        self.peer = await asyncio.wait_for(self.ready.get(), WAIT_S)
        while not self.events.empty():
            self.events.get_nowait()

    async def outcome(self, worker: Forked) -> tuple[int, str]:
        """The exit code and the one line of a worker that can't start."""
        _, errors = await asyncio.to_thread(worker.communicate, timeout=WAIT_S)
        assert len(errors.splitlines()) == 1, errors
        assert "Traceback" not in errors
        return worker.wait(), errors

    async def end(self, number: signal.Signals) -> int:
        assert self.worker is not None
        self.worker.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """The exit code, once the worker has ended."""
        assert self.worker is not None
        await asyncio.to_thread(self.worker.communicate, timeout=WAIT_S)
        return self.worker.wait()

    def send(self, message: Message) -> None:
        assert self.peer is not None
        self._server.send(self.peer, message)

    def drain(self) -> None:
        """Say what a gateway says after SIGTERM."""
        self._server.set_phase("draining")

    def say_goodbye(self) -> None:
        """Say what a gateway says at its end."""
        self._server.say_goodbye()

    async def logged(self, text: str) -> None:
        """Wait for a line of the worker's log."""
        assert self.worker is not None
        assert self.worker.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while text not in (line := await asyncio.to_thread(self.worker.stderr.readline)):
                assert line, f"the worker ended without saying: {text}"

    async def event(self) -> AuthEvent:
        return await asyncio.wait_for(self.events.get(), WAIT_S)

    async def ask(self, message: Message) -> AuthEvent:
        self.send(message)
        return await self.event()

    async def keys(self) -> dict[str, KeyRecord]:
        answer = await self.ask(ListKeys(request_id="list"))
        assert isinstance(answer, Keys), answer
        return {record.name: record for record in answer.records}

    async def create_user(self, **fields: Any) -> None:
        answer = await self.ask(
            CreateKey(
                request_id="create",
                key_digest=digest_of(USER_SECRET),
                hint="psk-us…test",
                name="user",
                actor_key_id="key_environment",
                **fields,
            )
        )
        assert isinstance(answer, Keys), answer

    async def close(self) -> None:
        if self.worker is not None and self.worker.poll() is None:
            await self.end(signal.SIGKILL)
        self._server.close()


@pytest_asyncio.fixture
async def harness(socket_dir: Path) -> AsyncIterator[Harness]:
    harness = Harness(socket_dir)
    yield harness
    await harness.close()


def authorize(number: int = 0, secret: str = USER_SECRET, **fields: Any) -> Authorize:
    defaults: dict[str, Any] = {"model": "demo", "prompt_tokens": 10, "completion_tokens": 50}
    return Authorize(
        request_id=f"req-{number}",
        key_digest=digest_of(secret),
        endpoint="/v1/chat/completions",
        **{**defaults, **fields},
    )


def settlement(lease_id: str, number: int) -> Settle:
    return Settle(
        lease_id=lease_id, request_id=f"req-{number}", prompt_tokens=3, completion_tokens=number % 7
    )


async def settle_until_killed(
    harness: Harness, first: int, num_acks: int
) -> tuple[dict[str, Settle], set[str]]:
    """Authorize and settle as fast as it goes, and kill -9 after so many acknowledgements.

    Returns:
        Every settlement that was sent, by lease id, and the lease ids of those acknowledged.
    """
    sent: dict[str, Settle] = {}
    acknowledged: set[str] = set()
    number = first
    for _ in range(64):
        harness.send(authorize(number := number + 1))
    while len(acknowledged) < num_acks:
        event = await harness.event()
        if isinstance(event, Granted):
            settle = settlement(event.lease_id, int(event.request_id.removeprefix("req-")))
            sent[event.lease_id] = settle
            harness.send(settle)
            harness.send(authorize(number := number + 1))
        elif isinstance(event, Settled):
            acknowledged.add(event.lease_id)
    await harness.end(signal.SIGKILL)
    # What had reached the socket before the kill was acknowledged as well.
    while not harness.events.empty():
        event = harness.events.get_nowait()
        if isinstance(event, Settled):
            acknowledged.add(event.lease_id)
    return sent, acknowledged


def wait_stopped(pid: int) -> None:
    """Until no thread of a process runs."""
    deadline = time.monotonic() + WAIT_S
    while {
        task.joinpath("stat").read_text("ascii", "replace").rpartition(") ")[2][0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    } != {"T"}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ledger_of(harness: Harness) -> dict[str, tuple[str, int]]:
    """Key and completion tokens by lease id, read beside the worker."""
    connection = sqlite3.connect(harness.data_dir / "auth.sqlite3")
    try:
        rows = connection.execute("SELECT lease_id, key_id, completion_tokens FROM ledger")
        return {lease_id: (key_id, tokens) for lease_id, key_id, tokens in rows}
    finally:
        connection.close()


def reported_tokens(harness: Harness) -> list[int]:
    """Completion tokens reported of the leases that are remembered, read beside the worker."""
    connection = sqlite3.connect(harness.data_dir / "auth.sqlite3")
    try:
        rows = connection.execute("SELECT reported_completion_tokens FROM leases")
        return [tokens for (tokens,) in rows]
    finally:
        connection.close()


async def test_kill_9_loses_no_acknowledged_settlement_and_books_none_twice(
    harness: Harness,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    dice = random.Random(seed)
    environment = {"PENSTOCK_ADMIN_KEY": ADMIN_SECRET}
    await harness.begin(**environment)
    await harness.create_user()
    key_id = (await harness.keys())["user"].key_id
    expected: dict[str, tuple[str, int]] = {}
    for turn in range(5):
        sent, acknowledged = await settle_until_killed(
            harness, turn * 1_000_000, dice.randrange(1, 1200)
        )
        assert acknowledged <= ledger_of(harness).keys(), f"seed {seed}: one is missing"
        await harness.begin(**environment)
        # As a gateway does: everything not acknowledged again, and something acknowledged too.
        again = [settle for lease_id, settle in sent.items() if lease_id not in acknowledged]
        again.append(sent[min(acknowledged)])
        for settle in again:
            harness.send(settle)
        for settle in again:
            assert await harness.event() == Settled(lease_id=settle.lease_id)
        expected |= {
            lease_id: (key_id, settle.completion_tokens) for lease_id, settle in sent.items()
        }
        assert ledger_of(harness) == expected, f"seed {seed}"
        record = (await harness.keys())["user"]
        assert record.total_requests == len(expected)
        assert record.total_prompt_tokens == 3 * len(expected)
        assert record.total_completion_tokens == sum(tokens for _, tokens in expected.values())
    assert await harness.end(signal.SIGTERM) == 0


async def test_it_outlasts_a_gateway_that_is_stopped_together_with_it(harness: Harness) -> None:
    await harness.begin(PENSTOCK_ADMIN_KEY=ADMIN_SECRET)
    await harness.create_user()
    running = await harness.ask(authorize(1))
    assert isinstance(running, Granted)
    # In the worst order: the worker hears of its own end first.
    assert harness.worker is not None
    harness.worker.send_signal(signal.SIGTERM)
    harness.drain()
    await harness.logged("a gateway drains")
    # A stream that needs another slice still gets it, and its end is written down.
    more = Adjust(
        request_id="req-1", lease_id=running.lease_id, prompt_tokens=10, completion_tokens=90
    )
    assert isinstance(await harness.ask(more), Adjusted)
    assert isinstance(await harness.ask(authorize(2)), Granted)
    assert await harness.ask(settlement(running.lease_id, 1)) == Settled(lease_id=running.lease_id)
    assert harness.worker.poll() is None
    harness.say_goodbye()
    await harness.logged("draining")
    assert await harness.ended() == 0


async def test_a_gateway_that_never_ends_does_not_keep_it_for_ever(harness: Harness) -> None:
    await harness.begin(PENSTOCK_ADMIN_KEY=ADMIN_SECRET, PENSTOCK_DRAIN_TIMEOUT_S="0.1")
    await harness.create_user()  # whoever answers has heard of the gateway
    harness.drain()
    assert harness.worker is not None
    harness.worker.send_signal(signal.SIGTERM)
    await harness.logged("waits no longer")
    assert await harness.ended() == 0


async def test_a_second_auth_worker_on_the_same_data_waits_and_ends_with_one_line(
    harness: Harness,
) -> None:
    await harness.begin()
    second = harness.start_worker()
    _, errors = await asyncio.to_thread(second.communicate, timeout=WAIT_S)
    assert second.wait() == 1
    waits, refused = errors.splitlines()
    assert "another auth worker" in waits
    assert "Another auth worker" in refused
    assert await harness.end(signal.SIGTERM) == 0
    await harness.begin()
    assert await harness.end(signal.SIGTERM) == 0


async def test_a_full_disk_acknowledges_nothing_says_so_once_and_loses_nothing(
    harness: Harness,
) -> None:
    await harness.begin(PENSTOCK_ADMIN_KEY=ADMIN_SECRET)
    await harness.create_user()
    granted = await harness.ask(authorize())
    assert isinstance(granted, Granted)
    assert harness.worker is not None
    # No file of the process may grow any more, until the disk "has room" again.
    _, hard = resource.prlimit(harness.worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(harness.worker.pid, resource.RLIMIT_FSIZE, (0, hard))
    harness.send(settlement(granted.lease_id, 3))
    assert harness.worker.stderr is not None
    line = ""
    async with asyncio.timeout(WAIT_S):
        while "refuses writes" not in line:
            line = await asyncio.to_thread(harness.worker.stderr.readline)
    assert json.loads(line)["level"] == "error"
    assert harness.events.empty()
    resource.prlimit(harness.worker.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert await harness.event() == Settled(lease_id=granted.lease_id)
    assert ledger_of(harness).keys() == {granted.lease_id}
    assert await harness.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("is_first", "max_file_bytes"),
    [(True, 0), (True, 4096), (True, 40_000), (False, 0), (False, 4096)],
)
async def test_a_start_without_room_on_the_disk_is_worth_another_try(
    harness: Harness, is_first: bool, max_file_bytes: int
) -> None:
    if not is_first:
        await harness.begin()
        assert await harness.end(signal.SIGTERM) == 0
    code, line = await harness.outcome(harness.start_worker(max_file_bytes))
    assert code == 75
    assert str(harness.data_dir) in line
    await harness.begin()
    assert await harness.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("harm", ["missing", "empty", "damaged"])
async def test_a_lost_database_ends_the_start_and_leaves_the_admin_key_alone(
    harness: Harness, harm: str
) -> None:
    await harness.begin()
    assert await harness.end(signal.SIGTERM) == 0
    database = harness.data_dir / "auth.sqlite3"
    good = database.read_bytes()
    secret = (harness.data_dir / "admin.key").read_text(encoding="ascii")
    match harm:
        case "missing":
            database.unlink()
        case "empty":
            database.write_bytes(b"")
        case _:
            database.write_bytes(good[:8192] + bytes(4096) + good[12288:])
    code, line = await harness.outcome(harness.start_worker())
    assert code == 78
    assert harm in line
    assert "Restore a backup" in line
    assert (harness.data_dir / "admin.key").read_text(encoding="ascii") == secret
    database.write_bytes(good)
    await harness.begin()
    assert isinstance(await harness.ask(authorize(0, secret.strip())), Granted)
    assert await harness.end(signal.SIGTERM) == 0


async def test_the_made_admin_key_opens_admin_routes(harness: Harness) -> None:
    await harness.begin()
    path = harness.data_dir / "admin.key"
    secret = path.read_text(encoding="ascii").strip()
    answer = await harness.ask(
        authorize(secret=secret, required_role="admin", prompt_tokens=0, completion_tokens=0)
    )
    assert isinstance(answer, Granted)
    assert answer.role == "admin"
    for file in harness.data_dir.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


async def test_a_lease_that_outlives_a_kill_is_charged_its_last_report(harness: Harness) -> None:
    environment = {"PENSTOCK_ADMIN_KEY": ADMIN_SECRET, "PENSTOCK_LEASE_DURATION_S": "1"}
    await harness.begin(**{**environment, "PENSTOCK_LEASE_DURATION_S": "600"})
    await harness.create_user(tokens_per_minute=1000)
    granted = await harness.ask(authorize())
    assert isinstance(granted, Granted)
    report = LeaseReport(lease_id=granted.lease_id, prompt_tokens=10, completion_tokens=4)
    harness.send(Renew(leases=(report,)))
    async with asyncio.timeout(WAIT_S):
        while reported_tokens(harness) != [4]:  # remembered in the background
            await harness.keys()
    await harness.end(signal.SIGKILL)
    await harness.begin(**environment)
    async with asyncio.timeout(WAIT_S):
        while (record := (await harness.keys())["user"]).total_requests == 0:
            pass  # each round trip waits for a commit
    assert (record.total_prompt_tokens, record.total_completion_tokens) == (10, 4)
    late = await harness.ask(settlement(granted.lease_id, 6))
    assert late == Settled(lease_id=granted.lease_id)
    record = (await harness.keys())["user"]
    assert (record.total_requests, record.total_completion_tokens) == (1, 6)


async def test_a_worker_that_was_stopped_grants_nothing_that_nobody_waits_for_any_more(
    harness: Harness,
) -> None:
    await harness.begin(PENSTOCK_ADMIN_KEY=ADMIN_SECRET)
    await harness.create_user(requests_per_minute=1)
    assert harness.worker is not None
    harness.worker.send_signal(signal.SIGSTOP)
    # Every thread of it: one that still ran would answer.
    await asyncio.to_thread(wait_stopped, harness.worker.pid)
    harness.send(authorize(1, wait_s=1.0))
    # The time itself is the test: it must be beyond two heartbeats and beyond `wait_s`.
    await asyncio.sleep(3.0)
    harness.worker.send_signal(signal.SIGCONT)
    denied = await harness.event()
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.WORKER_UNAVAILABLE
    late = await harness.ask(authorize(2))  # says nothing about waiting, as gateways of before 1.2
    assert isinstance(late, Granted)
    assert late.limits.remaining_requests == 0
    unused = Settle(
        lease_id=late.lease_id,
        request_id="req-2",
        prompt_tokens=0,
        completion_tokens=0,
        is_unused=True,
    )
    assert await harness.ask(unused) == Settled(lease_id=late.lease_id)
    granted = await harness.ask(authorize(3))
    assert isinstance(granted, Granted)
    assert (await harness.keys())["user"].total_requests == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PENSTOCK_ADMIN_KEY", "changeme-changeme-changeme-changeme"),
        ("PENSTOCK_AUTH_ENDPOINT", ""),
        ("PENSTOCK_ALLOW_ANONYMOUS", "perhaps"),
        ("PENSTOCK_DATA_DIR", "/proc/nowhere"),
    ],
)
async def test_a_bad_setting_ends_the_start_with_one_line(
    harness: Harness, setting: str, value: str
) -> None:
    worker = harness.start_worker(**{setting: value})
    _, errors = await asyncio.to_thread(worker.communicate, timeout=WAIT_S)
    assert worker.returncode == 1
    assert len(errors.splitlines()) == 1
    assert (value if setting == "PENSTOCK_DATA_DIR" else setting) in errors
    assert "Traceback" not in errors
    assert "changeme" not in errors
