"""What choices of lost gateways have used: kept, reported through another gateway, forgotten."""

import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.wire.messages import (
    Delta,
    Failure,
    Finished,
    Generate,
    OrphanUsage,
    StreamUsage,
)

MAX_USAGES = 10_000
"""Usages that are kept until somebody takes them; beyond it the oldest are dropped, loudly."""
MAX_USAGES_A_REPORT = 256
KEEP_ENDED_S = 15.0
"""A choice that ended longer ago is known to the auth worker: settled, or by the last renewal."""
RESEND_AFTER_S = 5.0
RETRY_AFTER_S = 1.0

_log = logging.getLogger("penstock.engine")

_Key = tuple[str, int]
"""Request and choice."""


@dataclass(slots=True)
class _ChoiceUsage:
    """What one choice with a lease has used, as its gateway was told of it."""

    lease_id: str
    attempt: int
    prompt_tokens: int
    completion_tokens: int


class OrphanTracker:
    """Follows what gateways are told, so that it can be charged when one of them dies.

    Owned by the engine's thread. What was computed but never sent is not in it.

    Args:
        engine_id: The instance id of this worker.
        clock: Monotonic seconds.
    """

    def __init__(self, engine_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine_id = engine_id
        self._clock = clock
        self._numbers = itertools.count(1)
        self._running: dict[str, dict[_Key, _ChoiceUsage]] = {}
        self._ended: deque[tuple[float, str, _Key, _ChoiceUsage]] = deque()
        self._pending: OrderedDict[tuple[str, str], StreamUsage] = OrderedDict()
        self._sent: OrphanUsage | None = None
        self._due_at = 0.0

    def __len__(self) -> int:
        return len(self._pending)

    def on_generate(self, gateway_id: str, command: Generate) -> None:
        """A gateway wants a choice; without a lease nobody is charged."""
        if command.lease_id:
            self._running.setdefault(gateway_id, {})[command.request_id, command.choice] = (
                _ChoiceUsage(
                    command.lease_id,
                    command.attempt,
                    len(command.prompt_token_ids),
                    len(command.output_token_ids),
                )
            )

    def on_output(
        self, gateway_id: str, deltas: Sequence[Delta], ends: Sequence[Finished | Failure]
    ) -> None:
        """A gateway is told of new output and of ends."""
        running = self._running.get(gateway_id)
        if not running:
            return
        for delta in deltas:
            choice = running.get((delta.request_id, delta.choice))
            if choice is not None and choice.attempt == delta.attempt:
                choice.completion_tokens += len(delta.token_ids)
        for end in ends:
            key = (end.request_id, end.choice)
            choice = running.get(key)
            if choice is not None and choice.attempt == end.attempt:
                del running[key]
                if end.usage is not None:  # without, it was refused before it ran
                    choice.completion_tokens = end.usage.completion_tokens
                    self._ended.append((self._clock(), gateway_id, key, choice))
        self._forget_old()

    def on_gateway_lost(self, gateway_id: str) -> None:
        """All that the gateway may not have settled waits to be reported."""
        self._forget_old()
        lost = list(self._running.pop(gateway_id, {}).items())
        lost += [(key, choice) for _, owner, key, choice in self._ended if owner == gateway_id]
        self._ended = deque(one for one in self._ended if one[1] != gateway_id)
        for (request_id, index), choice in lost:
            # A prompt is charged once, with its first choice: whether or not that one ran here.
            self._note(choice.lease_id, f"{request_id}/0", prompt_tokens=choice.prompt_tokens)
            name = f"{request_id}/{index}"
            self._note(choice.lease_id, name, completion_tokens=choice.completion_tokens)
        num_dropped = len(self._pending) - MAX_USAGES
        if num_dropped > 0:
            _log.error("the usage of %d choices of lost gateways is dropped", num_dropped)
            for _ in range(num_dropped):
                self._pending.popitem(last=False)

    def on_noted(self, report_id: str) -> None:
        """A report is safe; what was in it is forgotten."""
        if self._sent is None or self._sent.report_id != report_id:
            return
        for usage in self._sent.streams:
            key = (usage.lease_id, usage.stream)
            if self._pending.get(key) is usage:
                del self._pending[key]
        self._sent = None
        self._due_at = 0.0

    def next_due(self) -> float | None:
        """When there is something to send, on the clock; None while there is nothing."""
        return self._due_at if self._pending else None

    def postpone(self) -> None:
        """No gateway is there to take a report."""
        self._due_at = self._clock() + RETRY_AFTER_S

    def report(self) -> OrphanUsage:
        """What is to be sent now; again and again until `on_noted`."""
        if self._sent is None:
            self._sent = OrphanUsage(
                report_id=f"{self._engine_id}:{next(self._numbers)}",
                engine_id=self._engine_id,
                streams=tuple(itertools.islice(self._pending.values(), MAX_USAGES_A_REPORT)),
            )
        self._due_at = self._clock() + RESEND_AFTER_S
        return self._sent

    def _note(
        self, lease_id: str, name: str, *, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """A choice has used at least this."""
        known = self._pending.get((lease_id, name), StreamUsage())
        self._pending[lease_id, name] = StreamUsage(
            lease_id=lease_id,
            stream=name,
            prompt_tokens=max(prompt_tokens, known.prompt_tokens),
            completion_tokens=max(completion_tokens, known.completion_tokens),
        )

    def _forget_old(self) -> None:
        oldest = self._clock() - KEEP_ENDED_S
        while self._ended and (self._ended[0][0] < oldest or len(self._ended) > MAX_USAGES):
            self._ended.popleft()
