"""Requests that engines died of: found by running them alone, refused for a while afterwards."""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from gateway.dispatch.slots import Slot
from gateway.errors import GatewayError, PoisonRequestError, WorkerLostError
from protocol.errors import ErrorCode
from protocol.wire.messages import NUM_ALONE_TOKENS

_logger = logging.getLogger("penstock.gateway.quarantine")

QUARANTINE_S = 600.0
MAX_QUARANTINED = 1024
NUM_DEATHS_BEFORE_ISOLATION = 2


class Quarantine:
    """The fingerprints of convicted requests, each for a while; bounded, the oldest goes first.

    It compares fingerprints and knows nothing of what is in them. Whoever makes one puts in all
    that the engine's death may have depended on, and the tenant: the prompt, the sampling
    parameters and the grammar. A conviction then refuses one tenant one request, and neither the
    same prompt asked for otherwise nor anybody else's.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        self._expire()
        return len(self._until)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is convicted at the moment, so that no fingerprint need be made."""
        if self._until:
            self._expire()
        return not self._until

    def check(self, fingerprint: bytes) -> None:
        """Refuse a request that is in quarantine.

        Raises:
            PoisonRequestError: It is.
        """
        self._expire()
        until = self._until.get(fingerprint)
        if until is not None:
            minutes = math.ceil((until - self._clock()) / 60)
            raise PoisonRequestError(
                "This request has made engines fail, also when it ran alone; it is refused for "
                f"{minutes} more minutes."
            )

    def convict(self, fingerprint: bytes) -> PoisonRequestError:
        """Take a request in; the error that ends it."""
        self._until[fingerprint] = self._clock() + QUARANTINE_S
        self._until.move_to_end(fingerprint)
        if len(self._until) > MAX_QUARANTINED:
            self._until.popitem(last=False)
        return PoisonRequestError(
            "This request makes engines fail: several were lost while it ran, the last one when it "
            "ran alone."
        )

    def _expire(self) -> None:
        now = self._clock()
        while self._until:
            fingerprint, until = next(iter(self._until.items()))
            if until > now:
                return
            del self._until[fingerprint]


class Suspicion:
    """What speaks against one choice of a request: engines that died while it ran there.

    Two deaths make it run alone; a death then convicts it. A choice that has made
    `NUM_ALONE_TOKENS` tokens since is past the place at which engines died, and is cleared: those
    deaths had another cause.

    Args:
        quarantine: Where it ends up when it is convicted.
        fingerprint: Makes that of the request, which is costly and seldom needed.
    """

    def __init__(self, quarantine: Quarantine, fingerprint: Callable[[], bytes]) -> None:
        self._quarantine = quarantine
        self._fingerprint = fingerprint
        self._num_deaths = 0
        self._num_new_tokens = 0

    @property
    def needs_isolation(self) -> bool:
        """Whether it has to run alone."""
        return self._num_deaths >= NUM_DEATHS_BEFORE_ISOLATION

    def copy(self) -> "Suspicion":
        """The same suspicion of another choice of the request."""
        twin = Suspicion(self._quarantine, self._fingerprint)
        twin._num_deaths = self._num_deaths
        return twin

    def on_attempt(self) -> None:
        """It starts at an engine, perhaps again."""
        self._num_new_tokens = 0

    def on_tokens(self, num_tokens: int) -> bool:
        """It made tokens; whether it is cleared by them, which happens once an attempt."""
        before = self._num_new_tokens
        self._num_new_tokens += num_tokens
        if before < NUM_ALONE_TOKENS <= self._num_new_tokens:
            self._num_deaths = 0
            return True
        return False

    def on_failure(self, error: GatewayError, slot: Slot | None) -> GatewayError:
        """An attempt failed, perhaps with its engine.

        Args:
            error: How it failed.
            slot: Where; None when it never began.

        Returns:
            The error that counts: the conviction, when the engine died of it alone.
        """
        if slot is None or not _is_death(error):
            return error
        load = slot.engine.peer.load
        if slot.is_alone and load.num_running + load.num_waiting <= 1:
            name = slot.engine.peer.instance_id
            _logger.error("engine %s died of a request that ran alone", name)
            return self._quarantine.convict(self._fingerprint())
        self._num_deaths += 1
        return error


def _is_death(error: GatewayError) -> bool:
    """An engine that died, or a step that failed under several requests, one of which did it."""
    if isinstance(error, WorkerLostError):
        return error.is_death
    return error.code is ErrorCode.WORKER_LOST
