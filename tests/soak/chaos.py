"""Kills, stops, cuts and restarts one process at a time, and notes what each fault hit."""

import asyncio
import json
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.soak.processes import SoakHarness
from tests.soak.traffic import Answer

Action = Literal["kill", "stop", "cut", "restart"]
_MOVED = re.compile(r"request ([0-9a-f]{32})\S* goes to another (engine|toolparser)")
_MODULES = {
    "engine": "engine_worker",
    "toolparser": "toolparser_worker",
    "auth": "auth_worker",
    "gateway": "gateway",
}
_STOPPED_S = {"engine": 20.0, "toolparser": 20.0, "auth": 5.0, "gateway": 5.0}
"""How long a stopped process sleeps: an engine and a parser are given up after 15 s of silence."""
_CUT_S = 3.0


@dataclass(frozen=True)
class FaultKind:
    """What is done to which sort of process."""

    role: str
    action: Action

    def __str__(self) -> str:
        return f"{self.action} {self.role}"


_ACTIONS: tuple[Action, ...] = ("kill", "stop", "restart")
ALL_FAULTS = (
    *(FaultKind(role, action) for role in _MODULES for action in _ACTIONS),
    FaultKind("engine", "cut"),
)


@dataclass
class Fault:
    """One thing that was done.

    Attributes:
        at: Monotonic seconds.
        open_streams: Streams that had begun and not ended anywhere.
        moved: Ids of the requests that went on elsewhere, by the gateway's log.
        ready_s: From the fault to a whole deployment.
    """

    kind: FaultKind
    process: str
    at: float
    open_streams: list[Answer] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)
    ready_s: float = 0.0

    @property
    def recovery_s(self) -> list[float]:
        """From the fault to the next output, of each moved request that had begun."""
        moved = (answer for answer in self.open_streams if answer.response_id in self.moved)
        later = ([t for t in answer.event_times if t > self.at] for answer in moved)
        return [moments[0] - self.at for moments in later if moments]

    @property
    def counts(self) -> bool:
        """Whether it hit unfinished streams, on an engine or wherever it struck."""
        return bool(self.moved) if self.kind.role == "engine" else bool(self.open_streams)


class Chaos:
    """The driver of faults.

    Args:
        harness: The processes.
        open_answers: Streams that are open now.
        rng: Chooses process and pause.
        say: Told of each fault.
        ready_timeout_s: A deployment that is not whole again after a fault ends the run.
    """

    def __init__(
        self,
        harness: SoakHarness,
        open_answers: Callable[[], list[Answer]],
        rng: random.Random,
        *,
        say: Callable[[str], None] = lambda text: None,
        ready_timeout_s: float = 180.0,
    ) -> None:
        self._harness = harness
        self._say = say
        self._open_answers = open_answers
        self._rng = rng
        self._ready_timeout_s = ready_timeout_s
        self.faults: list[Fault] = []
        # Odd from the signal that ends a gateway until the process is gone.
        self.gateway_turns = 0

    async def run(self, kinds: Sequence[FaultKind], until: float, pause_s: float) -> None:
        """Make faults in shuffled rounds, at least one, until a time has come.

        Args:
            kinds: A round makes each once.
            until: Monotonic seconds; a round after the first ends there.
            pause_s: Of calm after the deployment is whole again.
        """
        is_first_round = True
        while is_first_round or time.monotonic() < until:
            for kind in self._rng.sample(kinds, len(kinds)):
                if not is_first_round and time.monotonic() >= until:
                    return
                await self.make(kind)
                await asyncio.sleep(pause_s)
            is_first_round = False

    async def make(self, kind: FaultKind) -> Fault:
        """One fault, and wait for a whole deployment."""
        name = self._rng.choice(self._harness.names(_MODULES[kind.role]))
        log = self._harness.log_path("gateway")
        log_size = log.stat().st_size
        fault = Fault(kind, name, time.monotonic(), self._open_answers())
        self.faults.append(fault)
        ends_gateway = kind.role == "gateway" and kind.action != "stop"
        self.gateway_turns += ends_gateway
        await self._act(kind, name)
        self.gateway_turns += ends_gateway
        await self._harness.wait_ready(self._ready_timeout_s)
        fault.ready_s = time.monotonic() - fault.at
        with log.open("rb") as lines:
            lines.seek(log_size)
            for line in lines:
                match = _MOVED.search(_message(line))
                if match:
                    fault.moved.add(match[1])
        self._say(
            f"{kind} ({name}): {len(fault.open_streams)} streams open, {len(fault.moved)} requests"
            f" moved, whole after {fault.ready_s:.1f} s"
        )
        return fault

    async def _act(self, kind: FaultKind, name: str) -> None:
        harness = self._harness
        if kind.action == "kill":
            await self._end(name, signal.SIGKILL)
        elif kind.action == "restart":
            await self._end(name, signal.SIGTERM)
        elif kind.action == "cut":
            relay = harness.relays[name]
            relay.cut()
            await asyncio.sleep(_CUT_S)
            relay.mend()
        else:
            harness.signal(name, signal.SIGSTOP)
            try:
                await asyncio.sleep(_STOPPED_S[kind.role])
            finally:
                harness.signal(name, signal.SIGCONT)
            await asyncio.sleep(2.0)  # long enough to be heard again

    async def _end(self, name: str, number: signal.Signals) -> None:
        process = self._harness.processes[name]
        process.send_signal(number)
        async with asyncio.timeout(self._ready_timeout_s):
            while self._harness.processes[name] is process:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the watcher starts the next one


def _message(line: bytes) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return str(entry.get("message", "")) if isinstance(entry, dict) else ""
