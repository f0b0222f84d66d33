"""Three auth workers on one PostgreSQL database: one is active, and nothing is granted twice or
lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.auth_harness import AuthHarness, DatabaseProxy
from tests.fakes.postgres_server import PostgresServer

pytestmark = pytest.mark.process

NUM_WORKERS = 3
NUM_CLIENTS = 8
PASSWORD = "a-password-that-nobody-may-see"
QUOTA = 600
ANSWER_S = 30.0
"""Longer than a machine takes that has forty times as much to do as it can."""


class SharedHarness(AuthHarness):
    """Each worker reaches the database through a proxy of its own."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self._server_of_database = server
        self._database = server.new_database()
        super().__init__(
            folder,
            answer_s=ANSWER_S,
            PENSTOCK_DATABASE_URL=server.url(self._database),
            PENSTOCK_LEASE_DURATION_S="2",
        )
        self.proxies: dict[str, DatabaseProxy] = {}

    async def begin(self) -> str:
        """Start all; the name of the active one."""
        for number in range(NUM_WORKERS):
            name = f"worker{number}"
            proxy = self.proxies[name] = DatabaseProxy(
                self._server_of_database.folder / ".s.PGSQL.5432"
            )
            await proxy.start()
            self.start_through_proxy(name)
        active = await self.until_active()
        await self.until(lambda: len(self.peers) == NUM_WORKERS, "all workers are connected")
        self.user_id = await self.create_user()
        return active

    def start_through_proxy(self, name: str) -> None:
        address = f"127.0.0.1:{self.proxies[name].port}/{self._database}"
        url = f"postgresql://penstock:{PASSWORD}@{address}"
        self.start_worker(name, PENSTOCK_DATABASE_URL=f"{url}?sslmode=disable")

    async def until_settled(self, more: int) -> None:
        """Wait until clients got so many more settlements acknowledged."""
        wanted = len(self.promises.settled) + more
        await self.until(lambda: len(self.promises.settled) >= wanted, "clients get on")

    def shows_password(self) -> bool:
        """Whether a worker has it in its log or its command line."""
        lines = [
            Path(f"/proc/{worker.pid}/cmdline").read_text(errors="replace")
            for worker in self.workers.values()
            if worker.poll() is None
        ]
        return any(PASSWORD in text for text in (*lines, *map(self.log_of, self.workers)))

    async def close(self) -> None:
        await super().close()
        for proxy in self.proxies.values():
            await proxy.close()


@pytest_asyncio.fixture
async def harness(
    socket_dir: Path, postgres_server: PostgresServer
) -> AsyncIterator[SharedHarness]:
    harness = SharedHarness(socket_dir, postgres_server)
    yield harness
    await harness.close()


async def test_one_of_three_is_active_and_those_that_stand_by_get_no_work(
    harness: SharedHarness,
) -> None:
    active = await harness.begin()
    waiting = [peer for peer in harness.peers if peer.auth is None]
    await harness.until(
        lambda: all(peer.detail.startswith("standing by: epoch") for peer in waiting),
        "two stand by",
    )
    assert len(waiting) == NUM_WORKERS - 1
    assert {(peer.phase, peer.takes_work) for peer in waiting} == {("ready", False)}
    harness.begin_load(NUM_CLIENTS, seed=1)
    await harness.until_settled(100)
    # Told to stop, it lets go of the lease: nobody waits for its end.
    epoch = harness.epoch()
    harness.workers[active].send_signal(signal.SIGTERM)
    assert await harness.ended(active) == 0
    assert await harness.until_active(after=epoch) != active
    await harness.until_settled(100)
    await harness.end_load()
    harness.check_promises()


async def test_when_the_active_one_is_killed_another_takes_over_and_nothing_acknowledged_is_lost(
    harness: SharedHarness,
) -> None:
    active = await harness.begin()
    harness.begin_load(NUM_CLIENTS, seed=2)
    for _ in range(2):
        await harness.until_settled(50)
        epoch = harness.epoch()
        await harness.kill(active)
        harness.start_through_proxy(active)
        active = await harness.until_active(after=epoch)
    await harness.until_settled(50)
    await harness.end_load()
    harness.check_promises()
    await harness.until_no_lease_is_open()


@pytest.mark.long
async def test_one_that_was_stopped_wakes_up_fenced(harness: SharedHarness) -> None:
    stopped = await harness.begin()
    harness.begin_load(NUM_CLIENTS, seed=3)
    await harness.until_settled(50)
    epoch = harness.epoch()
    harness.workers[stopped].send_signal(signal.SIGSTOP)
    assert await harness.until_active(after=epoch) != stopped
    await harness.until_settled(50)
    harness.workers[stopped].send_signal(signal.SIGCONT)
    assert await harness.ended(stopped) == 75
    assert f"mine is {epoch}" in harness.log_of(stopped)
    await harness.until_settled(50)
    await harness.end_load()
    harness.check_promises()


@pytest.mark.long
async def test_one_that_is_cut_off_from_the_database_stops_granting_and_is_fenced_when_it_heals(
    harness: SharedHarness,
) -> None:
    cut = await harness.begin()
    harness.begin_load(NUM_CLIENTS, seed=4)
    await harness.until_settled(50)
    epoch = harness.epoch()
    harness.proxies[cut].cut()
    # Its socket to the gateway is open, and it answers: it may only refuse.
    assert await harness.until_active(after=epoch) != cut
    await harness.until_settled(50)
    assert harness.workers[cut].poll() is None
    harness.proxies[cut].heal()  # what it had sent arrives late, too
    assert await harness.ended(cut) == 75
    await harness.until_settled(50)
    await harness.end_load()
    harness.check_promises()


async def test_a_hard_quota_is_not_overspent_across_a_kill_a_stop_and_a_partition(
    harness: SharedHarness,
) -> None:
    active = await harness.begin()
    await harness.create_quota(harness.user_id, QUOTA)
    harness.begin_load(NUM_CLIENTS, seed=6)
    await harness.until_settled(50)
    epoch = harness.epoch()
    await harness.kill(active)
    harness.start_through_proxy(active)
    stopped = await harness.until_active(after=epoch)
    await harness.until_settled(50)
    epoch = harness.epoch()
    harness.workers[stopped].send_signal(signal.SIGSTOP)
    cut = await harness.until_active(after=epoch)
    harness.workers[stopped].send_signal(signal.SIGCONT)
    assert await harness.ended(stopped) == 75
    harness.start_through_proxy(stopped)
    await harness.until_settled(50)
    epoch = harness.epoch()
    harness.proxies[cut].cut()
    await harness.until_active(after=epoch)
    harness.proxies[cut].heal()
    await harness.until_quota_is_spent()
    await harness.until_no_lease_is_open()
    # Grants that reached nobody were given back or lost with their epoch; none came on top.
    assert 150 <= len(harness.promises.epochs) <= QUOTA
    harness.check_promises()


async def test_when_the_server_restarts_the_same_worker_goes_on_with_what_it_had(
    harness: SharedHarness,
) -> None:
    active = await harness.begin()
    harness.begin_load(NUM_CLIENTS, seed=5)
    await harness.until_settled(50)
    for number in (signal.SIGINT, signal.SIGQUIT):  # orderly, and as if it had crashed
        await asyncio.to_thread(harness._server_of_database.stop, number)
        harness._server_of_database.start()
        await harness.until_settled(50)
    await harness.end_load()
    harness.check_promises()
    assert harness.active()
    assert "Traceback" not in harness.log_of(active)
    assert not harness.shows_password()
