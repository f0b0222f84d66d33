"""Which refusals go on record: the first of each caller, then a sample that counts the rest."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from auth_worker.clock import Clock
from auth_worker.records.operations import AppendAudit, AuditEntry, Operation

BURST = 10
INTERVAL_S = 10.0
"""Of one caller the first ten refusals are written, then one every ten seconds."""
HOUSE_BURST = 100
HOUSE_INTERVAL_S = 0.2
"""The same for all callers together, so that many strangers don't fill the disk either."""
MAX_CALLERS = 4096


@dataclass(slots=True)
class _Bucket:
    """A token bucket that counts what it refused."""

    tokens: float
    filled_s: float
    num_left_out: int = 0

    def refill(self, now_s: float, burst: int, interval_s: float) -> None:
        self.tokens = min(float(burst), self.tokens + (now_s - self.filled_s) / interval_s)
        self.filled_s = now_s


class RefusalLog:
    """Writes refusals to the audit log, sampled above a rate.

    Args:
        clock: Both clocks.
        emit: Takes operations that nobody waits for.
    """

    def __init__(self, clock: Clock, emit: Callable[[Operation], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._house = _Bucket(HOUSE_BURST, clock.monotonic_s())
        self._callers: OrderedDict[str, _Bucket] = OrderedDict()

    def note(self, entry: AuditEntry, number: int = 1) -> None:
        """So many refusals; the caller is their actor, or without one their address."""
        now_s = self._clock.monotonic_s()
        caller = entry.actor_key_id or f"address {entry.address}"
        bucket = self._callers.get(caller)
        if bucket is None:
            bucket = self._callers[caller] = _Bucket(BURST, now_s)
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(caller)
        bucket.refill(now_s, BURST, INTERVAL_S)
        self._house.refill(now_s, HOUSE_BURST, HOUSE_INTERVAL_S)
        if bucket.tokens < 1 or self._house.tokens < 1:
            bucket.num_left_out += number
            return
        bucket.tokens -= 1
        self._house.tokens -= 1
        if bucket.num_left_out:
            detail = {**entry.detail, "num_left_out": bucket.num_left_out}
            entry = replace(entry, detail=detail)
            bucket.num_left_out = 0
        self._emit(AppendAudit(entry))
