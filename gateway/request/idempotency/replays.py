"""Answers that are kept under an `Idempotency-Key`, so that a repeated request is answered once.

In the memory of this gateway, bounded by number, bytes and age. What is to hold elsewhere, too, is
claimed in a database besides: docs/adr/0040 says why.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from gateway.errors import IdempotencyKeyReusedError, OverloadedError, RequestInProgressError

MAX_KEPT = 10_000
MAX_RUNNING = 4096
TENANT_SHARE: Final = 4
"""One tenant keeps at most a quarter of the number and of the bytes."""
MAX_ANSWER_SHARE: Final = 8
"""An answer over an eighth of the bytes isn't kept: it would push out too many others."""
_OVERHEAD_BYTES = 512
_HEAD_BYTES: Final = 4


class ReplayName(NamedTuple):
    """What names a request: its tenant, and a digest of its route and its `Idempotency-Key`."""

    tenant: str
    key: bytes


class Asked(NamedTuple):
    """What was granted for an answer; whoever wants it again must still be granted as much."""

    model: str
    asked_tokens: int
    is_streaming: bool
    uses_tools: bool


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer as it went out the first time, and what was granted for it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    asked: tuple[Asked, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What it counts in the bound."""
        return len(self.body) + _OVERHEAD_BYTES

    def encoded(self) -> bytes:
        """For a database."""
        head = orjson.dumps((self.status, dict(self.headers), [tuple(one) for one in self.asked]))
        return len(head).to_bytes(_HEAD_BYTES, "big") + head + self.body

    @classmethod
    def decoded(cls, data: bytes) -> "KeptAnswer":
        """From a database."""
        end = _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "big")
        status, headers, asked = orjson.loads(data[_HEAD_BYTES:end])
        return cls(status, headers, data[end:], tuple(Asked(*one) for one in asked))


class _Kept(NamedTuple):
    fingerprint: bytes
    answer: KeptAnswer
    since_s: float


class _Shelf:
    """What is kept for one tenant, oldest first."""

    def __init__(self) -> None:
        self.names: OrderedDict[ReplayName, None] = OrderedDict()
        self.num_bytes = 0


class ReplayTable:
    """Kept answers and running requests, by tenant and key.

    Args:
        max_bytes: Of all kept answers together.
        max_age_s: How long an answer is kept.
        clock: Monotonic seconds.

    Attributes:
        num_bytes: Of all kept answers.
        num_replayed: Requests that were answered so.
    """

    def __init__(
        self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._running: dict[ReplayName, bytes] = {}
        self._kept: OrderedDict[ReplayName, _Kept] = OrderedDict()
        self._of_tenant: dict[str, _Shelf] = {}
        self.num_bytes = 0
        self.num_replayed = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def max_answer_bytes(self) -> int:
        """What one answer may count."""
        return self._max_bytes // MAX_ANSWER_SHARE

    def claim(self, name: ReplayName, fingerprint: bytes) -> KeptAnswer | None:
        """The kept answer to a request; None when the caller is to answer it.

        Then it is running, until `keep` or `drop`.

        Args:
            name: Of the request.
            fingerprint: A digest of everything else that makes it the same request.

        Raises:
            IdempotencyKeyReusedError: The key came with another request.
            RequestInProgressError: The same request is running.
            OverloadedError: Too many are.
        """
        self._expire()
        running, kept = self._running.get(name), self._kept.get(name)
        known = running if kept is None else kept.fingerprint
        if known is not None and known != fingerprint:
            raise IdempotencyKeyReusedError()
        if running is not None:
            raise RequestInProgressError()
        if kept is not None:
            self.num_replayed += 1
            return kept.answer
        if len(self._running) >= MAX_RUNNING:
            raise OverloadedError(
                f"{MAX_RUNNING} requests with an Idempotency-Key are running; please try again."
            )
        self._running[name] = fingerprint
        return None

    def keep(self, name: ReplayName, answer: KeptAnswer) -> bool:
        """Answer repetitions of a running request with this; False when it is too large."""
        fingerprint = self._running.pop(name)
        if answer.num_bytes > self.max_answer_bytes:
            return False
        own = self._of_tenant.get(name.tenant) or _Shelf()
        while own.names and (
            own.num_bytes + answer.num_bytes > self._max_bytes // TENANT_SHARE
            or len(own.names) >= MAX_KEPT // TENANT_SHARE
        ):
            self._forget(next(iter(own.names)))
        while self._kept and (
            self.num_bytes + answer.num_bytes > self._max_bytes or len(self._kept) >= MAX_KEPT
        ):
            self._forget(next(iter(self._kept)))
        self._kept[name] = _Kept(fingerprint, answer, self._clock())
        own = self._of_tenant.setdefault(name.tenant, _Shelf())
        own.names[name] = None
        own.num_bytes += answer.num_bytes
        self.num_bytes += answer.num_bytes
        return True

    def drop(self, name: ReplayName) -> None:
        """Nothing came of a running request: a repetition is a new one; idempotent."""
        self._running.pop(name, None)

    def _expire(self) -> None:
        oldest_s = self._clock() - self._max_age_s
        while self._kept:
            name = next(iter(self._kept))
            if self._kept[name].since_s > oldest_s:
                return
            self._forget(name)

    def _forget(self, name: ReplayName) -> None:
        kept = self._kept.pop(name)
        self.num_bytes -= kept.answer.num_bytes
        own = self._of_tenant[name.tenant]
        del own.names[name]
        own.num_bytes -= kept.answer.num_bytes
        if not own.names:
            del self._of_tenant[name.tenant]
