"""One soak from start to report: learn the texts, make chaos under load, settle, then stay calm."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.soak.accounts import accounts, rows_of_keys
from tests.soak.chaos import ALL_FAULTS, Chaos, FaultKind
from tests.soak.processes import SoakHarness, free_port
from tests.soak.report import Calm, Findings, render
from tests.soak.traffic import Client, Crowd, kinds, learn, short_requests
from tests.soak.warm_up import Look, read, warm_up

_START_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 240.0
_DATABASE = "auth.sqlite3"
_CALM_CLIENTS = 16
_LEASE_PATIENCE_S = 60.0
_MAX_SAID_FAILURES = 20


@dataclass(frozen=True)
class SoakOptions:
    """How long and how hard.

    Attributes:
        directory: Data, logs and sockets; a short path.
        cache_dir: Compiled programs.
        chaos_s: Seconds of chaos.
        num_calm_requests: One-token requests after it, for the growth of memory; 0 leaves them out.
        faults: What chaos makes.
        num_tokens: Of long answers.
        pause_s: Calm between two faults.
        say: Told how it goes.
    """

    directory: Path
    cache_dir: Path
    chaos_s: float
    num_clients: int
    num_engines: int = 2
    num_parsers: int = 2
    num_calm_requests: int = 0
    faults: Sequence[FaultKind] = ALL_FAULTS
    num_tokens: int = 160
    pause_s: float = 2.0
    seed: int = 1
    say: Callable[[str], None] = lambda text: None


async def soak(options: SoakOptions) -> tuple[Findings, str]:
    """Run it.

    Returns:
        The findings, and the report as Markdown.
    """
    harness = SoakHarness(
        options.directory,
        options.cache_dir,
        free_port(),
        num_engines=options.num_engines,
        num_parsers=options.num_parsers,
    )
    options.say(f"starting {options.num_engines} engines; logs in {options.directory}")
    try:
        await harness.start(_START_TIMEOUT_S)
        findings = await _run(options, harness)
    finally:
        await harness.stop()
    return findings, render(findings)


async def _run(options: SoakOptions, harness: SoakHarness) -> Findings:
    rng = random.Random(options.seed)
    requests = kinds(options.num_tokens)
    stayers = tuple(kind for kind in requests if kind.leaves_after is None)
    leavers = tuple(kind for kind in requests if kind.leaves_after is not None)
    # Keys of their own: what a client that left was charged, no client knows.
    keys = {group: await harness.make_key(group) for group in ("stayers", "leavers", "teacher")}
    chaos = Chaos(harness, lambda: crowd.open_answers(), rng, say=options.say)
    num_leavers = max(1, options.num_clients // 8)
    clients = [
        Client(harness.url, keys[group], kinds_of_group, lambda: chaos.gateway_turns)
        for group, kinds_of_group, number in (
            ("stayers", stayers, options.num_clients - num_leavers),
            ("leavers", leavers, num_leavers),
        )
        for _ in range(number)
    ]
    teacher = Client(harness.url, keys["teacher"], requests, lambda: 0)
    known = await learn(teacher)
    options.say(f"learnt {len(known)} answers; {options.num_clients} clients begin")
    crowd = Crowd(clients, known, options.seed)
    started = time.monotonic()
    crowd.start()
    await asyncio.sleep(options.pause_s)
    await chaos.run(options.faults, started + options.chaos_s, options.pause_s)
    await crowd.stop(_END_TIMEOUT_S)
    findings = Findings(time.monotonic() - started, crowd.ledger, chaos.faults)
    options.say(f"chaos is over: {dict(crowd.ledger.endings)}")
    for failure in crowd.ledger.failures[:_MAX_SAID_FAILURES]:
        options.say(f"failed: {failure}")
    await _await_settlements(harness)
    findings.open_leases = await _open_leases(options.directory / "data")
    booked = {group: await _booked(harness, group) for group in ("stayers", "leavers")}
    findings.settled_prompt_tokens = booked["stayers"].prompt_tokens
    findings.settled_completion_tokens = booked["stayers"].completion_tokens
    findings.accounts = accounts(
        rows_of_keys(options.directory / "data" / _DATABASE, (key.id for key in booked.values())),
        crowd.ledger.seen,
    )
    if options.num_calm_requests:
        await _stay_calm(options, harness, clients, findings)
    for client in (*clients, teacher):
        await client.close()
    return findings


async def _stay_calm(
    options: SoakOptions,
    harness: SoakHarness,
    clients: Sequence[Client],
    findings: Findings,
) -> None:
    """Measure how memory grows over many short requests, once every process has served some."""
    await harness.wait_ready(_START_TIMEOUT_S)
    num_deaths = len(harness.deaths)

    async def ask(number: int) -> int:
        return await short_requests(clients[:_CALM_CLIENTS], number, options.say)

    async def look() -> Look:
        return read(await _metrics(harness))

    processes = {"engine": options.num_engines, "toolparser": options.num_parsers}
    warm = await warm_up(ask, look, processes, options.num_calm_requests // 10)
    before = harness.memory_bytes()
    options.say(f"calm: {options.num_calm_requests} requests after {warm.num_requests} to warm up")
    num_failed = await ask(options.num_calm_requests)
    after = harness.memory_bytes()
    growth = {name: after[name] / size for name, size in before.items()}
    findings.calm = Calm(
        options.num_calm_requests, num_failed, growth, warm, harness.deaths[num_deaths:]
    )


class _Booked(NamedTuple):
    """A key, and the tokens that are booked for it."""

    id: str
    prompt_tokens: int
    completion_tokens: int


async def _booked(harness: SoakHarness, name: str) -> _Booked:
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.get(
            f"{harness.url}/v1/admin/keys", headers={"Authorization": f"Bearer {harness.admin_key}"}
        )
        reply.raise_for_status()
        (key,) = (key for key in reply.json()["data"] if key["name"] == name)
        return _Booked(key["id"], key["total_prompt_tokens"], key["total_completion_tokens"])


async def _await_settlements(harness: SoakHarness) -> None:
    """Until no settlement waits in the gateway's outbox and nothing is under way."""
    async with asyncio.timeout(60):
        while True:
            text = await _metrics(harness)
            if (
                "penstock_gateway_outbox_depth 0.0" in text
                and "penstock_gateway_requests_in_flight 0.0" in text
            ):
                return
            await asyncio.sleep(0.1)


async def _metrics(harness: SoakHarness) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{harness.url}/metrics")).text


async def _open_leases(data_dir: Path) -> int:
    """Leases that are neither settled nor expired, once those of dead gateways had their time."""
    path = data_dir / _DATABASE
    deadline = time.monotonic() + _LEASE_PATIENCE_S
    while True:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (count,) = database.execute("select count(*) from leases").fetchone()
        if not count or time.monotonic() >= deadline:
            return int(count)
        await asyncio.sleep(0.5)
