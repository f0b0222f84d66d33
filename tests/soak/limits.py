"""Requests over limits while clients, gateways and auth workers go away: nothing is overspent.

`python -m tests.soak.limits [--requests 20000]` runs a gateway and an auth worker as processes and
an engine of its own that counts what it tells. Teams, their users, keys and end users, and the
house have budgets, quotas, rates and parallel limits that are too small for all requests. Clients
leave in the middle, gateway and auth worker are killed (SIGKILL) in turn. Limits are looked at all
the while; in the end the ledger is compared with the engine's own counts, and everything that
`penstock auth check` looks at has to hold.
"""

import argparse
import asyncio
import itertools
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from auth_worker.auditing.database_check import check_database
from auth_worker.storage.reading import reader
from protocol.runtime.child_environment import without_settings
from tests.soak.counting_engine import CountingEngine

LEASE_S: Final = 8
"""Longer than a gateway takes to come back where the cores are busy: as long as there is none,
nobody brings what engines report, and leases that expire meanwhile are charged too little first."""
PROMPT: Final = "one two three"
NUM_CLIENTS: Final = 64
BUDGET_MICROS: Final = 3_000
"""A completion token costs ten micro-units here, so this is 300 tokens of a team."""
HOUSE_SHARE: Final = 0.9
"""Of all budgets of teams together, what the house may spend in a day that slides."""
MOST_PARALLEL: Final = 8
END_USERS: Final = ("", "ada", "bob")
REQUESTS_A_TEAM: Final = 150
"""Of which some thirty use all of its budget."""
BOTH: Final = ("auth_worker", "gateway")
AWAY: Final = frozenset({0, 502, 503})
"""What a client sees of a process that was killed; 0 is a connection that broke."""


@dataclass
class Figures:
    """What came of a run in which nothing was overspent.

    Attributes:
        parallel_over: Requests that were seen to run beyond a parallel limit, at most.
        rate_over: Requests that were seen to count beyond a rate, at most.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    num_looks: int = 0
    parallel_over: int = 0
    rate_over: int = 0
    num_rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        told = ", ".join(f"{status}: {num}" for status, num in sorted(self.statuses.items()))
        kills = ", ".join(f"{name} {num}" for name, num in sorted(self.kills.items()))
        return (
            f"{self.statuses.total()} requests ({told}; 0 is a broken connection, -1 a client that"
            f" left); kills: {kills}; limits of a key, its user, end user, team and house"
            f" looked at {self.num_looks} times: budgets and quotas never overspent, at most"
            f" {self.parallel_over} more at a time than a limit and {self.rate_over} more in a"
            f" minute than a rate, after a kill; {self.num_rows} rows of the ledger hold"
            f" {self.prompt_tokens} prompt and {self.completion_tokens} completion tokens, as the"
            " engine counted"
        )


class LimitsHarness:
    """A gateway and an auth worker as processes, the engine here, teams with small budgets.

    Args:
        folder: Short, for sockets.
        num_teams: Each with a user and a key of its own, and limits of every holder.
        victims: What is killed, one after the other; without it, both in turn to the end.
    """

    def __init__(self, folder: Path, num_teams: int, victims: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.figures = Figures()
        self._num_teams = num_teams
        self._victims = victims
        self._admin_key = f"psk-{secrets.token_urlsafe(32)}"
        self._keys: list[str] = []
        self._key_ids: list[str] = []
        self._budgets: dict[str, int] = {}  # of teams, by id
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._engine = CountingEngine(folder)
        self._is_over = False
        self._is_killing = True
        self._is_whole = asyncio.Event()
        # A connection to a gateway that was killed is no use to the next request.
        bounds = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._shared = httpx.AsyncClient(timeout=30.0, trust_env=False, limits=bounds)
        (folder / "auth-data").mkdir()

    async def start(self) -> None:
        """Start everything, and make the teams."""
        self._engine.start()
        for name in ("auth_worker", "gateway"):
            self._start(name)
        await self._until_ready()
        self._is_whole.set()
        async with self._client(self._admin_key) as admin:
            price = {"models": "*", "prompt": 0, "completion": 10_000_000}
            assert (await admin.post("/v1/admin/prices", json=price)).status_code == 201
            house = int(HOUSE_SHARE * BUDGET_MICROS * self._num_teams)
            await _make(admin, "budgets", name="h", holder="house", amount=house, window="day")
            for number in range(self._num_teams):
                await self._make_team(admin, f"team {number}")

    async def _make_team(self, admin: httpx.AsyncClient, name: str) -> None:
        user = (await _make(admin, "users", name=name))["id"]
        team = (await _make(admin, "teams", name=name))["id"]
        joined = await admin.put(f"/v1/admin/teams/{team}/members/{user}", json={})
        assert joined.status_code == 200, joined.text
        key = await _make(
            admin, "keys", name=name, team_id=team, user_id=user, may_name_end_users=True
        )
        self._keys.append(key["key"])
        self._key_ids.append(key["id"])
        budget = await _make(
            admin,
            "budgets",
            name=name,
            holder="team",
            holder_id=team,
            amount=BUDGET_MICROS,
            window="total",
        )
        self._budgets[budget["id"]] = BUDGET_MICROS
        limits: list[tuple[str, str, str, dict[str, Any]]] = [
            ("limits", "team", team, {"measure": "tokens", "amount": 1_500, "window": "total"}),
            (
                "limits",
                "team",
                team,
                {"measure": "parallel", "amount": MOST_PARALLEL, "window": "total"},
            ),
            ("budgets", "user", user, {"amount": 900, "window": "minute"}),
            ("limits", "key", key["id"], {"measure": "requests", "amount": 60, "window": "minute"}),
            (
                "limits",
                "user",
                user,
                {"measure": "completion_tokens", "amount": 280, "window": "calendar_day"},
            ),
            (
                "limits",
                "end_user",
                team,
                {"measure": "tokens", "amount": 600, "window": "calendar_day"},
            ),
            ("budgets", "end_user", key["id"], {"amount": 1_500, "window": "hour"}),
        ]
        for kind, holder, holder_id, fields in limits:
            await _make(admin, kind, name=name, holder=holder, holder_id=holder_id, **fields)

    async def load(self, num_requests: int, seed: int) -> None:
        """So many requests, while something is killed now and then and budgets are looked at."""
        dice = random.Random(seed)
        places = asyncio.Semaphore(NUM_CLIENTS)
        looking = asyncio.get_running_loop().create_task(self._look())
        killing = asyncio.get_running_loop().create_task(self._kill(random.Random(seed + 1)))

        async def one(
            key: str, leaves_after_s: float | None, max_tokens: int, end_user: str
        ) -> None:
            async with places:
                while True:
                    status = await self._ask(key, leaves_after_s, max_tokens, end_user)
                    self.figures.statuses[status] += 1
                    if status not in AWAY:
                        return
                    await self._is_whole.wait()
                    await asyncio.sleep(0.05)  # and then once more

        plans = [
            (
                dice.choice(self._keys),
                dice.random() * 0.1 if dice.random() < 0.3 else None,
                dice.choice((4, 8, 16)),
                dice.choice(END_USERS),
            )
            for _ in range(num_requests)
        ]
        await asyncio.gather(*(one(*plan) for plan in plans))
        self._is_killing = self._victims is not None
        await killing
        await self._until_ready()
        await self._until_settled()
        self._is_over = True
        await looking

    async def _ask(
        self, key: str, leaves_after_s: float | None, max_tokens: int, end_user: str
    ) -> int:
        """The status that a client gets; -1 when it leaves before."""
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": max_tokens,
            "stream": True,
            **({"user": end_user} if end_user else {}),
        }
        headers = {"Authorization": f"Bearer {key}"}
        try:
            async with asyncio.timeout(leaves_after_s):
                asking = self._shared.stream(
                    "POST", f"{self._url()}/v1/chat/completions", json=body, headers=headers
                )
                async with asking as answer:
                    async for _ in answer.aiter_bytes():
                        pass
                    return answer.status_code
        except TimeoutError:
            return -1
        except (httpx.HTTPError, OSError):
            return 0

    async def _look(self) -> None:
        """No limit of a key is ever above its amount, with what is reserved."""
        for key_id, end_user in itertools.cycle(itertools.product(self._key_ids, END_USERS[1:])):
            if self._is_over:
                return
            with suppress(httpx.HTTPError, OSError):
                found = await self._shared.get(
                    f"{self._url()}/v1/usage",
                    params={"key_id": key_id, "end_user": end_user},
                    headers={"Authorization": f"Bearer {self._admin_key}"},
                )
                if found.status_code == 200:
                    self._check_limits(found.json()["limits"])
            await asyncio.sleep(0.05)

    def _check_limits(self, limits: list[dict[str, Any]]) -> None:
        """Money and quotas are never overspent; rates and what runs may be more after a kill.

        Slices of budgets and quotas are on the disk before anything is granted from them. Of a rate
        and a parallel limit, what was granted in the last tenth of a second before a kill is known
        to nobody until it is renewed or settled: as many as may run at a time, and no more.
        """
        assert {limit["holder"] for limit in limits} == {"end_user", "key", "user", "team", "house"}
        num_kills = self.figures.kills["auth_worker"]
        for limit in limits:
            over = limit["used"] + limit["reserved"] - limit["amount"]
            if limit["measure"] == "parallel":
                self.figures.parallel_over = max(self.figures.parallel_over, over)
                assert over <= (MOST_PARALLEL if num_kills else 0), limit
            elif limit["measure"] == "requests":
                self.figures.rate_over = max(self.figures.rate_over, over)
                assert over <= MOST_PARALLEL * num_kills, limit
            else:
                assert over <= 0, limit
        self.figures.num_looks += 1

    async def _kill(self, dice: random.Random) -> None:
        for name in itertools.cycle(BOTH) if self._victims is None else self._victims:
            await asyncio.sleep((2.0 if self._victims is None else 0.5) * (0.5 + dice.random()))
            if not self._is_killing:
                return
            self._is_whole.clear()
            self._processes[name].kill()
            await asyncio.to_thread(self._processes[name].wait)
            self.figures.kills[name] += 1
            self._start(name)
            await self._until_ready()
            self._is_whole.set()

    async def _until_settled(self) -> None:
        """No lease is open any more, and the engine is rid of what gateways left behind."""
        async with asyncio.timeout(180):
            # Both are other processes' to know, which tell nobody.
            while self._num_leases() or self._engine.has_orphans:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    def _num_leases(self) -> int:
        with closing(sqlite3.connect(self.folder / "auth-data" / "auth.sqlite3")) as database:
            (num,) = database.execute("SELECT count(*) FROM leases").fetchone()
        return int(num)

    async def close(self) -> None:
        """End in order."""
        self._is_over = True
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            await asyncio.to_thread(process.wait)
        await self._engine.close()
        await self._shared.aclose()

    def check(self) -> None:
        """The ledger holds what the engine counted, request by request, and all sums agree."""
        by_request: Counter[str] = Counter()
        with closing(sqlite3.connect(self.folder / "auth-data" / "auth.sqlite3")) as database:
            rows = database.execute(
                "SELECT request_id, prompt_tokens, completion_tokens FROM ledger"
                " WHERE outcome <> 'unused'"
            ).fetchall()
            used = database.execute("SELECT limit_id, used FROM limit_usage").fetchall()
        for request_id, prompt, completion in rows:
            self.figures.num_rows += 1
            self.figures.prompt_tokens += prompt
            self.figures.completion_tokens += completion
            by_request[request_id] += completion
        counted = {name: num for name, num in self._engine.completion_tokens.items() if num}
        assert {name: num for name, num in by_request.items() if num} == counted
        of_teams = [(limit_id, amount) for limit_id, amount in used if limit_id in self._budgets]
        for limit_id, amount in of_teams:
            assert amount <= self._budgets[limit_id], (limit_id, amount)
        assert sum(amount for _, amount in of_teams) == 10 * self.figures.completion_tokens
        found = check_database(reader(self.folder / "auth-data", None), signer=None, noted=())
        for holds, sentence in found:
            assert holds, sentence

    def _client(self, key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            base_url=self._url(), headers=headers, timeout=30.0, trust_env=False
        )

    def _url(self) -> str:
        try:
            port = (self.folder / "port").read_text().strip()
        except FileNotFoundError:
            port = ""
        return f"http://127.0.0.1:{port or 9}"  # nobody serves port 9 here

    async def _until_ready(self) -> None:
        async with asyncio.timeout(180):
            while True:
                with suppress(httpx.HTTPError, OSError):
                    found = await self._shared.get(f"{self._url()}/ready")
                    if found.status_code == 200:
                        return
                await asyncio.sleep(0.05)

    def _start(self, name: str) -> None:
        if name == "gateway":
            (self.folder / "port").unlink(missing_ok=True)
        data = "auth-data" if name == "auth_worker" else "gateway-data"
        environ = {
            **without_settings(os.environ),
            "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{self.folder}/engine",
            "PENSTOCK_AUTH_ENDPOINT": f"ipc://{self.folder}/auth",
            "PENSTOCK_TOOLPARSER_ENDPOINT": f"ipc://{self.folder}/toolparser",
            "PENSTOCK_DATA_DIR": str(self.folder / data),
            "PENSTOCK_PORT": "0",
            "PENSTOCK_PORT_FILE": str(self.folder / "port"),
            "PENSTOCK_REQUIRE_KEYS": "true",
            "PENSTOCK_ADMIN_KEY": self._admin_key,
            "PENSTOCK_LEASE_DURATION_S": str(LEASE_S),
            "PENSTOCK_MODELS": "demo",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", name], env=environ, stdout=log, stderr=log
            )


async def _make(admin: httpx.AsyncClient, kind: str, **body: Any) -> dict[str, Any]:
    made = await admin.post(f"/v1/admin/{kind}", json=body)
    assert made.status_code == 201, made.text
    record: dict[str, Any] = made.json()
    return record


async def over_limits(
    folder: Path,
    num_requests: int,
    seed: int = 1,
    num_teams: int = 8,
    victims: Sequence[str] | None = None,
) -> Figures:
    """So many requests over limits; what came of them.

    Raises:
        AssertionError: Something was overspent, or the sums don't agree.
    """
    harness = LimitsHarness(folder, num_teams, victims)
    try:
        await harness.start()
        await harness.load(num_requests, seed)
    finally:
        await harness.close()
    harness.check()
    return harness.figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--teams", type=int, help="one for each 150 requests unless told")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="pst-"))
    num_teams = options.teams or max(1, options.requests // REQUESTS_A_TEAM)
    run = partial(over_limits, folder, options.requests, options.seed, num_teams)
    sys.stdout.write(f"{asyncio.run(run())}\n")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
