"""Auth workers killed at random points under load: what was acknowledged must be there.

`python -m tests.soak.auth_kills [--kills 50] [--keys 0] [--database sqlite|postgresql]` prints one
line of figures a database; `make soak` runs it as well. With `--stop`, workers on PostgreSQL are
stopped (SIGSTOP) instead, and wake up once another one has taken over. With `--starts`, nobody is
killed: it prints how long a worker process takes until a gateway may ask it.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from auth_worker.clock import SystemClock
from auth_worker.storage import schema
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.postgres_database import PostgresDatabase
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_store import SqliteStore
from tests.fakes.auth_harness import AuthHarness
from tests.fakes.postgres_server import MISSING, PostgresServer, find_binaries

NUM_STANDBYS = 2
MAX_LIFE_S = 1.0
"""A worker lives for so long at most between two kills, from when it takes work."""


@dataclass(frozen=True)
class KillFigures:
    """What came of a run in which nothing was lost.

    Attributes:
        gaps_s: From each kill until another worker, or the same one anew, took work.
    """

    database: str
    num_kills: int
    num_settled: int
    num_keys: int
    num_entries: int
    gaps_s: tuple[float, ...]

    def __str__(self) -> str:
        ordered = sorted(self.gaps_s)
        return (
            f"{self.database}: {self.num_kills} kills, {self.num_settled} settlements and"
            f" {self.num_keys} keys acknowledged, none lost; {self.num_entries} audit entries hold;"
            f" work again after {ordered[len(ordered) // 2]:.1f} s (median), {ordered[-1]:.1f} s"
            " (worst)"
        )


async def kill_again_and_again(
    folder: Path,
    *,
    num_kills: int,
    seed: int,
    url: str | None = None,
    num_clients: int = 8,
    num_other_keys: int = 0,
    stops: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> KillFigures:
    """Kill the active worker so often, then end in order and look for everything promised.

    Args:
        folder: Short, for sockets.
        num_kills: kill -9, each within a second after a worker took work.
        seed: Of the moments.
        url: Of an empty PostgreSQL database, where others stand by; None for SQLite, where the
            killed one is started anew.
        num_clients: Concurrent requests.
        num_other_keys: In the database from the beginning, and never used: a worker reads them.
        stops: SIGSTOP instead; the worker goes on once another one works, finds that out and ends.
        say: Told of each kill.

    Raises:
        AssertionError: Something was lost, or done twice.
    """
    chance = random.Random(seed)
    settings: dict[str, Any] = {"PENSTOCK_LEASE_DURATION_S": "2"}
    if url is not None:
        settings["PENSTOCK_DATABASE_URL"] = url
    if num_other_keys:
        fill(folder, url, num_other_keys)
    harness = AuthHarness(folder, **settings)
    gaps_s = []
    try:
        names = ["worker"] if url is None else [f"worker{n}" for n in range(1 + NUM_STANDBYS)]
        for name in names:
            harness.start_worker(name)
        await harness.until(harness.epoch, "a worker takes work")
        await harness.create_user()
        harness.begin_load(num_clients, seed)
        for number in range(num_kills):
            await asyncio.sleep(chance.random() * MAX_LIFE_S)
            epoch = harness.epoch()
            victim = names[0] if url is None else await harness.until_active()
            killed_s = time.monotonic()
            if stops:
                harness.workers[victim].send_signal(signal.SIGSTOP)
            else:
                await harness.kill(victim)
                harness.start_worker(victim)
            await harness.until(partial(_is_later, harness, epoch), "work goes on")
            gaps_s.append(time.monotonic() - killed_s)
            if stops:
                harness.workers[victim].send_signal(signal.SIGCONT)
                await harness.ended(victim)
                harness.start_worker(victim)
            say(f"{number + 1} of {num_kills}: {gaps_s[-1]:.1f} s")
        await harness.end_load()
        await harness.until_no_lease_is_open()
        checked = harness.check_promises()
    finally:
        await harness.close()
    promises = harness.promises
    return KillFigures(
        database="SQLite" if url is None else "PostgreSQL",
        num_kills=num_kills,
        num_settled=len(promises.settled),
        num_keys=len(promises.keys),
        num_entries=checked.num_entries,
        gaps_s=tuple(gaps_s),
    )


async def time_starts(
    folder: Path, *, num_starts: int, url: str | None, num_other_keys: int
) -> str:
    """How long a process takes from its start until a gateway may ask it, Python's imports too."""
    settings: dict[str, Any] = {} if url is None else {"PENSTOCK_DATABASE_URL": url}
    if num_other_keys:
        fill(folder, url, num_other_keys)
    harness = AuthHarness(folder, **settings)
    times_s = []
    try:
        for _ in range(num_starts):
            epoch, begun_s = harness.epoch(), time.monotonic()
            harness.start_worker("worker")
            await harness.until(partial(_is_later, harness, epoch), "a worker takes work")
            times_s.append(time.monotonic() - begun_s)
            harness.workers["worker"].send_signal(signal.SIGTERM)
            await harness.ended("worker")
    finally:
        await harness.close()
    told = ", ".join(f"{one:.1f}" for one in sorted(times_s))
    database = "SQLite" if url is None else "PostgreSQL"
    return f"{database}, {num_other_keys} keys: ready after {told} s"


def fill(folder: Path, url: str | None, num_keys: int) -> None:
    """Make the tables, and put so many keys there."""
    clock = SystemClock()
    rows = [
        {
            "key_id": f"key_other_{number}",
            "digest": os.urandom(32),
            "hint": "psk-ot…hers",
            "name": "another",
            "role": "user",
            "tenant": "",
            "requests_per_minute": 60,
            "created_at": 0,
            "created_by": "",
        }
        for number in range(num_keys)
    ]
    if url is None:
        store: SqlStore = SqliteStore(folder / "data", clock=clock)
    else:
        database = PostgresDatabase(DatabaseUrl(url, "--database"))
        database.is_free()
        store = SqlStore(database, clock=clock)
    with closing(store), store.database.transaction() as connection:
        connection.execute(insert(schema.keys), rows)


def _is_later(harness: AuthHarness, epoch: int) -> bool:
    return harness.epoch() > epoch


def run(
    databases: Sequence[str],
    num_kills: int,
    seed: int,
    say: Callable[[str], None],
    num_other_keys: int = 0,
    *,
    stops: bool = False,
    num_starts: int = 0,
) -> str:
    """Both databases one after the other; their lines."""
    lines = []
    for database in databases:
        folder = Path(tempfile.mkdtemp(prefix="pst-"))
        server: PostgresServer | None = None
        try:
            url = None
            if database == "postgresql":
                binaries = find_binaries()
                if binaries is None:
                    lines.append(f"PostgreSQL: not run. {MISSING}")
                    continue
                server = PostgresServer(binaries)
                server.start()
                url = server.url(server.new_database())
            if num_starts:
                timed = time_starts(
                    folder, num_starts=num_starts, url=url, num_other_keys=num_other_keys
                )
                lines.append(asyncio.run(timed))
                continue
            figures = asyncio.run(
                kill_again_and_again(
                    folder,
                    num_kills=num_kills,
                    seed=seed,
                    url=url,
                    num_other_keys=num_other_keys,
                    stops=stops,
                    say=say,
                )
            )
            lines.append(str(figures))
        finally:
            if server is not None:
                server.close()
            if sys.exc_info()[0] is None:  # what went wrong is in its logs
                shutil.rmtree(folder, ignore_errors=True)
    return "\n".join(lines)


def main() -> int:
    """Run with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.auth_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keys", type=int, default=0, help="in the database from the beginning")
    parser.add_argument("--stop", action="store_true", help="SIGSTOP instead, on PostgreSQL")
    parser.add_argument("--starts", type=int, default=0, help="time so many starts instead")
    args = parser.parse_args()
    databases = args.database or (["postgresql"] if args.stop else ["sqlite", "postgresql"])
    print(
        run(
            databases,
            args.kills,
            args.seed,
            lambda text: print(text, file=sys.stderr),
            args.keys,
            stops=args.stop,
            num_starts=args.starts,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
