"""What an attack knows of the deployment, and what it tells afterwards."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.attack.raw_http import Answer, ask, made_up_key, source_address

MODEL = "penstock-demo"
EMBEDDING_MODEL = "minilm"
"""Of the real deployment; a scripted engine makes embeddings itself."""
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HarnessKind = Literal["scripted", "real"]
GoodKind = Literal["chat", "grammar", "embedding"]
ANSWER_TIMEOUT_S = 60.0
_MAX_FAULTS = 20
_AFTER_BREAK_S = 0.01


@dataclass
class Outcome:
    """What an attacker saw.

    Attributes:
        counts: Statuses, broken connections and whatever else an attack counts.
        faults: What no client may ever see, a line each; the first ones only.
        notes: What a reader of the report should know: how far it was scaled down.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, answer: Answer, what: str, excused: str = "") -> None:
        """Count an answer; one that shows a broken server is a fault, unless its body says why."""
        self.counts[str(answer.status)] += 1
        if answer.is_fault and not (excused and excused in answer.text):
            self.blame(f"{what}: {answer.status} {answer.text}")

    def blame(self, fault: str) -> None:
        """Note a fault."""
        self.counts["faults"] += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)


@dataclass
class Target:
    """The deployment as an attacker finds it.

    Attributes:
        port: Of the gateway.
        key: A valid one, of the attacker's own tenant.
        admin_key: An administrator's, for the routes that need one.
        seconds: How long an attack goes on.
        rng: Of all choices.
    """

    port: int
    key: str
    admin_key: str
    seconds: float
    rng: random.Random
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    def stranger(self) -> str:
        """A key that nobody made."""
        return made_up_key(self.rng)

    async def ask(
        self,
        request: bytes,
        what: str,
        source: str | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        excused: str = "",
    ) -> Answer | None:
        """Send a request and count what comes back; None when no answer came.

        Args:
            request: All its bytes.
            what: For reports.
            source: The attacker's address.
            timeout_s: Patience; no answer within it is counted as one that did not come.
            excused: In the body of a 5xx it says that this one is meant.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await ask(self.port, request, source)
        except (OSError, EOFError) as error:
            self.outcome.counts[type(error).__name__] += 1
        except ValueError as error:
            self.outcome.blame(f"{what}: {error}")
        else:
            self.outcome.take(answer, what, excused)
            return answer
        return None

    async def crowd(self, size: int, one: Callable[[int, str], Coroutine[Any, Any, None]]) -> None:
        """So many attackers at a time, each again and again until the time is up.

        Args:
            size: How many.
            one: Gets the attacker's number and address; one round of what it does.
        """

        async def live(number: int) -> None:
            while not self.is_over:
                await self.attempt(one(number, source_address(number)))

        await asyncio.gather(*(live(number) for number in range(size)))

    async def attempt(self, attack: Coroutine[Any, Any, None]) -> None:
        """Do something; a connection that breaks meanwhile is counted, not raised."""
        try:
            await attack
        except (OSError, EOFError) as error:
            self.outcome.counts[type(error).__name__] += 1
            await asyncio.sleep(_AFTER_BREAK_S)

    async def together(self, attacks: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Attempt all side by side."""
        await asyncio.gather(*(self.attempt(attack) for attack in attacks))

    async def rest(self) -> None:
        """Wait until the time is up."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))


@dataclass(frozen=True)
class Attack:
    """One thing that a hostile client does.

    Attributes:
        name: For `--only`.
        summary: One line for the report.
        run: What it does; ends by itself soon after `Target.seconds`.
        harness: Whether it needs real engines; scripted ones are fast and say known words.
        good: What the good client beside it asks for.
        num_engines: Of each model.
        max_deaths: Processes that may die of it.
    """

    name: str
    summary: str
    run: Callable[[Target], Coroutine[Any, Any, None]]
    harness: HarnessKind = "scripted"
    good: GoodKind = "chat"
    num_engines: int = 2
    max_deaths: int = 0
