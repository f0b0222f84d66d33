"""One attack from a fresh deployment to a verdict: calm, attack, settle, judge."""

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.attack.attacker import attack_from_elsewhere
from tests.attack.client import GoodClient, Latencies, Prober, good_request
from tests.attack.harness import AttackHarness, Snapshot
from tests.attack.raw_http import post
from tests.attack.target import CHAT, MODEL, Attack, Outcome, Target
from tests.attack.values import ORDINARY_BODIES
from tests.soak.processes import free_port

_START_TIMEOUT_S: Final = 240.0
_WARM_UP_SHARE: Final = 0.5
_USERS: Final = 32
_SAMPLE_S: Final = 0.25
_MAX_SLOWDOWN: Final = 3.0
_MAX_LIVE_MS: Final = 100.0
_MAX_GROWTH: Final = 1.10
_MAX_MORE_DESCRIPTORS: Final = 2
_RATES_PER_S: Final = {"scripted": 20.0, "real": 5.0}


@dataclass(frozen=True)
class Options:
    """How long, and where.

    Attributes:
        cache_dir: Compiled programs.
        calm_s: How long the calm is measured; before it all routes are used, and the good client
            is there for half as long.
        attack_s: How long an attack goes on.
        settle_s: Patience with memory, descriptors and gauges afterwards.
        seed: Of all choices.
        has_stalls: Whether it is told what held up the gateway's loop.
        say: Told how it goes.
    """

    cache_dir: Path
    calm_s: float = 10.0
    attack_s: float = 10.0
    settle_s: float = 30.0
    seed: int = 1
    has_stalls: bool = False
    say: Callable[[str], None] = lambda text: None


@dataclass
class Traffic:
    """What was measured over some time.

    Attributes:
        good: The good client's chats.
        live: Answers of `/live`.
        control: Answers of a server that does nothing, at the same time on the same machine.
        peak_bytes: Process → the most memory that was seen.
    """

    good: Latencies = field(default_factory=Latencies)
    live: Latencies = field(default_factory=Latencies)
    control: Latencies = field(default_factory=Latencies)
    peak_bytes: dict[str, int] = field(default_factory=dict)


@dataclass
class Finding:
    """One attack and what it did.

    Attributes:
        calm: Before it; `under_attack` until all that the good client had asked was answered.
        before: The idle deployment before; `after` once it had settled.
        tracebacks: In any process's log.
        deaths: Processes that ended by themselves.
        stalls: What held up the gateway's loop under attack, if that was looked at.
    """

    attack: Attack
    calm: Traffic
    under_attack: Traffic
    before: Snapshot
    after: Snapshot
    outcome: Outcome
    settled_s: float
    tracebacks: list[str]
    deaths: list[str]
    stalls: list[str] = field(default_factory=list)

    @property
    def growth(self) -> dict[str, float]:
        """Process → its memory afterwards over its memory before."""
        return {
            name: self.after.memory_bytes[name] / size
            for name, size in self.before.memory_bytes.items()
        }

    @property
    def verdicts(self) -> list[str]:
        """What is wrong, a line each; nothing when the deployment took no harm."""
        calm, attacked = self.calm, self.under_attack
        wrong = []
        slowest, usual = attacked.good.quantile(0.99), calm.good.quantile(0.99)
        if slowest > _MAX_SLOWDOWN * usual:
            wrong.append(f"p99 {slowest:.0f} ms is {slowest / usual:.1f} times calm")
        if attacked.good.num_failed:
            wrong.append(f"{attacked.good.num_failed} good requests failed")
        worst = attacked.live.quantile(1.0)
        if worst >= _MAX_LIVE_MS:
            wrong.append(f"/live took {worst:.0f} ms")
        if attacked.live.num_failed:
            wrong.append(f"/live failed {attacked.live.num_failed} times")
        wrong += [
            f"{name} holds {100 * (growth - 1):+.0f} %"
            for name, growth in self.growth.items()
            if growth > _MAX_GROWTH
        ]
        if not self._has_its_descriptors:
            wrong.append(f"descriptors {self.before.num_descriptors} → {_fds(self.after)}")
        wrong += [f"{name} is {value:g}" for name, value in self.after.busy.items()]
        if len(self.deaths) > self.attack.max_deaths:
            wrong.append(f"{len(self.deaths)} deaths, {self.attack.max_deaths} allowed")
        if self.tracebacks:
            wrong.append(f"{len(self.tracebacks)} tracebacks")
        if self.outcome.counts["faults"]:
            wrong.append(f"{self.outcome.counts['faults']} wrong answers")
        return wrong

    @property
    def _has_its_descriptors(self) -> bool:
        allowed = self.before.num_descriptors + _MAX_MORE_DESCRIPTORS
        return self.after.num_descriptors <= allowed

    @property
    def has_settled(self) -> bool:
        """Whether the deployment holds no more than before."""
        return (
            not self.after.busy
            and self._has_its_descriptors
            and all(growth <= _MAX_GROWTH for growth in self.growth.values())
        )


def _fds(snapshot: Snapshot) -> int:
    return snapshot.num_descriptors


async def run_attack(attack: Attack, options: Options) -> Finding:
    """Attack a fresh deployment.

    The logs of one that took harm stay where `options.say` tells.
    """
    directory = Path(tempfile.mkdtemp(prefix="attack-"))
    harness = AttackHarness(
        attack.harness,
        directory,
        options.cache_dir,
        free_port(),
        attack.num_engines,
        has_stalls=options.has_stalls,
    )
    try:
        await harness.start(_START_TIMEOUT_S)
        async with _control() as control_port:
            finding = await _attack(attack, options, harness, control_port)
    finally:
        await harness.stop()
    verdict = "; ".join(finding.verdicts) or "no harm"
    options.say(f"{attack.name}: {verdict}")
    if finding.verdicts:
        options.say(f"  logs: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return finding


async def _attack(
    attack: Attack, options: Options, harness: AttackHarness, control_port: int
) -> Finding:
    good_key = await harness.make_key("good", "good")
    good = GoodClient(
        harness.port,
        _RATES_PER_S[attack.harness],
        lambda number: good_request(attack.good, good_key, number),
    )
    key = await harness.make_key("attacker", "attacker")

    async def measure(during: Any) -> Traffic:
        return await _measure(harness, good, control_port, during)

    await _use(harness, key)
    await measure(asyncio.sleep(options.calm_s * _WARM_UP_SHARE))
    calm = await measure(asyncio.sleep(options.calm_s))
    before = await harness.snapshot()
    log_sizes = harness.log_sizes()
    harness.watch_stalls()
    outcome = Outcome()

    async def hostile() -> None:
        nonlocal outcome
        outcome = await attack_from_elsewhere(
            attack.name,
            port=harness.port,
            key=key,
            admin_key=harness.admin_key,
            seconds=options.attack_s,
            seed=options.seed,
        )

    under_attack = await measure(hostile())
    stalls = await harness.stalls()
    began = time.monotonic()
    while True:
        after = await harness.snapshot()
        finding = Finding(
            attack=attack,
            calm=calm,
            under_attack=under_attack,
            before=before,
            after=after,
            outcome=outcome,
            settled_s=time.monotonic() - began,
            tracebacks=harness.tracebacks(log_sizes),
            deaths=list(harness.deaths),
            stalls=stalls,
        )
        if finding.has_settled or finding.settled_s > options.settle_s:
            return finding
        await asyncio.sleep(1.0)


async def _use(harness: AttackHarness, key: str) -> None:
    """Ask for everything in ordinary sizes: what a server in use holds is not the attack's."""
    target = Target(harness.port, key, harness.admin_key, 0.0, random.Random(0))
    requests = [post(path, body, key) for path, body in ORDINARY_BODIES.items()]
    requests += [post(path, {"unknown": 1}, "psk-unknown") for path in ORDINARY_BODIES]
    long_chat = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 12_000}]}
    requests.append(post(CHAT, long_chat | {"max_tokens": 1}, key))

    async def one() -> None:
        for request in requests:
            await target.ask(request, "warm-up")

    await asyncio.gather(*(one() for _ in range(_USERS)))


async def _measure(
    harness: AttackHarness, good: GoodClient, control_port: int, during: Any
) -> Traffic:
    """The good client and the probes beside something, until it is over."""
    traffic = Traffic()
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(good.run(traffic.good, stop)),
        asyncio.create_task(Prober(harness.port, "/live").run(traffic.live, stop)),
        asyncio.create_task(Prober(control_port, "/").run(traffic.control, stop)),
        asyncio.create_task(_watch_memory(harness, traffic, stop)),
    ]
    try:
        await during
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    return traffic


async def _watch_memory(harness: AttackHarness, traffic: Traffic, stop: asyncio.Event) -> None:
    while not stop.is_set():
        for name, size in harness.memory_bytes().items():
            traffic.peak_bytes[name] = max(size, traffic.peak_bytes.get(name, 0))
        await asyncio.sleep(_SAMPLE_S)


@asynccontextmanager
async def _control() -> AsyncIterator[int]:
    """The port of a server that does nothing."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attack.control"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()
