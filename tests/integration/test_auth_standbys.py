"""Three auth workers on one PostgreSQL database: one is active, and nothing is granted twice or lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.auth_house import AuthHouse, DatabaseProxy
from tests.fakes.postgres_server import PostgresServer

pytestmark = pytest.mark.process

NUM_WORKERS = 3
NUM_CLIENTS = 8
PASSWORD = "a-password-that-nobody-may-see"
QUOTA = 600


class SharedHouse(AuthHouse):
    """Each worker reaches the database through a proxy of its own."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self._server_of_database = server
        self._database = server.new_database()
        super().__init__(
            folder,
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
async def house(socket_dir: Path, postgres_server: PostgresServer) -> AsyncIterator[SharedHouse]:
    house = SharedHouse(socket_dir, postgres_server)
    yield house
    await house.close()


async def test_one_of_three_is_active_and_those_that_stand_by_get_no_work(
    house: SharedHouse,
) -> None:
    active = await house.begin()
    waiting = [peer for peer in house.peers if peer.auth is None]
    await house.until(
        lambda: all(peer.detail.startswith("standing by: epoch") for peer in waiting),
        "two stand by",
    )
    assert len(waiting) == NUM_WORKERS - 1
    assert {(peer.phase, peer.takes_work) for peer in waiting} == {("ready", False)}
    house.begin_load(NUM_CLIENTS, seed=1)
    await house.until_settled(100)
    # Told to stop, it lets go of the lease: nobody waits for its end.
    epoch = house.epoch()
    house.workers[active].send_signal(signal.SIGTERM)
    assert await house.ended(active) == 0
    assert await house.until_active(after=epoch) != active
    await house.until_settled(100)
    await house.end_load()
    house.check_promises()


async def test_when_the_active_one_is_killed_another_takes_over_and_nothing_acknowledged_is_lost(
    house: SharedHouse,
) -> None:
    active = await house.begin()
    house.begin_load(NUM_CLIENTS, seed=2)
    for _ in range(2):
        await house.until_settled(50)
        epoch = house.epoch()
        await house.kill(active)
        house.start_through_proxy(active)
        active = await house.until_active(after=epoch)
    await house.until_settled(50)
    await house.end_load()
    house.check_promises()
    await house.until_no_lease_is_open()


@pytest.mark.long
async def test_one_that_was_stopped_wakes_up_fenced(house: SharedHouse) -> None:
    stopped = await house.begin()
    house.begin_load(NUM_CLIENTS, seed=3)
    await house.until_settled(50)
    epoch = house.epoch()
    house.workers[stopped].send_signal(signal.SIGSTOP)
    assert await house.until_active(after=epoch) != stopped
    await house.until_settled(50)
    house.workers[stopped].send_signal(signal.SIGCONT)
    assert await house.ended(stopped) == 75
    assert f"mine is {epoch}" in house.log_of(stopped)
    await house.until_settled(50)
    await house.end_load()
    house.check_promises()


@pytest.mark.long
async def test_one_that_is_cut_off_from_the_database_stops_granting_and_is_fenced_when_it_heals(
    house: SharedHouse,
) -> None:
    cut = await house.begin()
    house.begin_load(NUM_CLIENTS, seed=4)
    await house.until_settled(50)
    epoch = house.epoch()
    house.proxies[cut].cut()
    # Its socket to the gateway is open, and it answers: it may only refuse.
    assert await house.until_active(after=epoch) != cut
    await house.until_settled(50)
    assert house.workers[cut].poll() is None
    house.proxies[cut].heal()  # what it had sent arrives late, too
    assert await house.ended(cut) == 75
    await house.until_settled(50)
    await house.end_load()
    house.check_promises()


async def test_a_hard_quota_is_not_overspent_across_a_kill_a_stop_and_a_partition(
    house: SharedHouse,
) -> None:
    active = await house.begin()
    await house.create_quota(house.user_id, QUOTA)
    house.begin_load(NUM_CLIENTS, seed=6)
    await house.until_settled(50)
    epoch = house.epoch()
    await house.kill(active)
    house.start_through_proxy(active)
    stopped = await house.until_active(after=epoch)
    await house.until_settled(50)
    epoch = house.epoch()
    house.workers[stopped].send_signal(signal.SIGSTOP)
    cut = await house.until_active(after=epoch)
    house.workers[stopped].send_signal(signal.SIGCONT)
    assert await house.ended(stopped) == 75
    house.start_through_proxy(stopped)
    await house.until_settled(50)
    epoch = house.epoch()
    house.proxies[cut].cut()
    await house.until_active(after=epoch)
    house.proxies[cut].heal()
    await house.until_quota_is_spent()
    await house.until_no_lease_is_open()
    # Grants that reached nobody were given back or lost with their epoch; none came on top.
    assert 150 <= len(house.promises.epochs) <= QUOTA
    house.check_promises()


async def test_when_the_server_restarts_the_same_worker_goes_on_with_what_it_had(
    house: SharedHouse,
) -> None:
    active = await house.begin()
    house.begin_load(NUM_CLIENTS, seed=5)
    await house.until_settled(50)
    for number in (signal.SIGINT, signal.SIGQUIT):  # orderly, and as if it had crashed
        await asyncio.to_thread(house._server_of_database.stop, number)
        house._server_of_database.start()
        await house.until_settled(50)
    await house.end_load()
    house.check_promises()
    assert house.active()
    assert "Traceback" not in house.log_of(active)
    assert not house.shows_password()
