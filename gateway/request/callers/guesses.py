"""Addresses that try one wrong key after another: slowed down; good keys there are not."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import DeniedError
from protocol.errors import ErrorCode
from protocol.runtime.addresses import network_of

REFILL_S = 6.0
"""Of each address another wrong key is looked up every six seconds, ten a minute."""
MAX_ADDRESSES = 16_384
MAX_DIGESTS = 65_536


@dataclass(slots=True)
class _Bucket:
    left: float
    filled_s: float
    num_refused: int = 0  # that nobody was told of

    def refill(self, now_s: float, burst: int) -> None:
        self.left = min(float(burst), self.left + (now_s - self.filled_s) / REFILL_S)
        self.filled_s = now_s


class GuessGuard:
    """Counts different wrong keys by the address that they came from; bounded, the oldest go first.

    A client that repeats one wrong key counts once. A key or token that was good here is never
    refused for what its address does: many may stand behind one.

    Args:
        burst: Wrong keys of one address that are looked up at once; 0 is no bound.
        clock: Monotonic seconds.

    Attributes:
        num_refused: Keys that nobody was asked about.
    """

    def __init__(self, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self.num_refused = 0

    def refusal(self, key_digest: bytes | None, address: str) -> DeniedError | None:
        """Why nobody is asked about a key; None when it may be tried."""
        if not self._buckets or key_digest is None or key_digest in self._good:
            return None
        bucket = self._buckets.get(network_of(address))
        if bucket is None:
            return None
        bucket.refill(self._clock(), self._burst)
        if bucket.left >= 1.0:
            return None
        self.num_refused += 1
        bucket.num_refused += 1
        return DeniedError(
            "Too many wrong API keys came from this address; try again later.",
            code=ErrorCode.TOO_MANY_WRONG_KEYS,
            retry_after_s=math.ceil((1.0 - bucket.left) * REFILL_S),
        )

    def take_refused(self, address: str) -> int:
        """How many keys of an address were refused since this was last asked."""
        bucket = self._buckets.get(network_of(address)) if self._buckets else None
        if bucket is None:
            return 0
        num_refused, bucket.num_refused = bucket.num_refused, 0
        return num_refused

    def note_good(self, key_digest: bytes | None) -> None:
        """A key opened something."""
        if key_digest is not None and self._burst:
            _remember(self._good, key_digest)

    def note_wrong(self, key_digest: bytes | None, address: str) -> None:
        """A key is nobody's (any more)."""
        if key_digest is None or not address or not self._burst:
            return
        self._good.pop(key_digest, None)
        if key_digest in self._wrong:
            return
        _remember(self._wrong, key_digest)
        network, now_s = network_of(address), self._clock()
        bucket = self._buckets.get(network)
        if bucket is None:
            bucket = self._buckets[network] = _Bucket(float(self._burst), now_s)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(network)
        bucket.refill(now_s, self._burst)
        bucket.left = max(0.0, bucket.left - 1.0)


def _remember(digests: OrderedDict[bytes, None], digest: bytes) -> None:
    digests[digest] = None
    digests.move_to_end(digest)
    if len(digests) > MAX_DIGESTS:
        digests.popitem(last=False)
