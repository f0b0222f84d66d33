"""How each worker has done lately: answers, how long they took, what failed last."""

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import ErrorCode, PenstockError
from protocol.wire.peers import Peer

NUM_REMEMBERED = 256
"""Latencies and outcomes that are looked at."""

WORKERS_FAULT: Final = frozenset(
    {
        ErrorCode.INTERNAL_ERROR,
        ErrorCode.POISON_REQUEST,
        ErrorCode.OVERLOADED,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.DEADLINE_EXCEEDED,
    }
)
"""What a request is not to blame for; every other refusal is an answer like any other."""


@dataclass(slots=True)
class WorkerRecord:
    """One worker.

    Attributes:
        num_answered: Since it connected.
        num_failed: Likewise.
        last_failure: Code and message, and when on the records' clock.
    """

    num_answered: int = 0
    num_failed: int = 0
    last_failure: tuple[ErrorCode, str, float] | None = None
    # Numbers in place, of which the oldest is the next to go: objects that live so long, each made
    # at another time, keep the memory around them from being given back.
    _latencies_s: "array[float]" = field(default_factory=lambda: array("d"))
    _num_latencies: int = 0
    _outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=NUM_REMEMBERED))

    def latency_s(self, share: float) -> float | None:
        """The latency that this share of the last answers did not exceed; None without any."""
        if not self._latencies_s:
            return None
        ordered = sorted(self._latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def success_rate(self) -> float | None:
        """The share of the last requests that did not fail; None before the first."""
        return sum(self._outcomes) / len(self._outcomes) if self._outcomes else None

    def note(self, latency_s: float | None, failure: PenstockError | None, now_s: float) -> None:
        """A request ended."""
        is_failure = failure is not None and failure.code in WORKERS_FAULT
        self._outcomes.append(not is_failure)
        if failure is not None and is_failure:
            self.num_failed += 1
            self.last_failure = (failure.code, failure.message, now_s)
            return
        self.num_answered += 1
        if latency_s is not None:
            if len(self._latencies_s) < NUM_REMEMBERED:
                self._latencies_s.append(latency_s)
            else:
                self._latencies_s[self._num_latencies % NUM_REMEMBERED] = latency_s
            self._num_latencies += 1


class WorkerRecords:
    """The records of all connected workers.

    A worker's ends after its connection, when another worker comes.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[Peer, WorkerRecord] = {}

    def of(self, peer: Peer) -> WorkerRecord:
        """The record of a worker."""
        record = self._records.get(peer)
        if record is None:
            here = {one: kept for one, kept in self._records.items() if one.loss_reason is None}
            record = here[peer] = WorkerRecord()
            self._records = here
        return record

    def note(
        self, peer: Peer, latency_s: float | None = None, failure: PenstockError | None = None
    ) -> None:
        """A worker answered, or failed to."""
        self.of(peer).note(latency_s, failure, self._clock())
