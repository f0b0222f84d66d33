"""Tells gateways which prompt blocks are cached, so that they can route by it."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from engine_worker.core.scheduling.block_pool import ContentChanges
from engine_worker.serving.handler import Outlet
from protocol.version import METRICS_VERSION
from protocol.wire.messages import CachedBlocks

REPORT_INTERVAL_S = 0.1
"""While the engine works, changes are collected for so long."""
MAX_HASHES = 4096
"""Of one message."""


class CachedContents(Protocol):
    """What the engine has cached."""

    def cached_blocks(self) -> tuple[bytes, ...]:
        """Names of all blocks."""
        ...

    def take_cache_changes(self) -> ContentChanges | None:
        """What changed since the last call."""
        ...


class CacheReporter:
    """Sends every gateway all names once, and then the changes; owned by the step loop.

    Args:
        contents: The engine.
        outlet: Where messages go.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        contents: CachedContents,
        outlet: Outlet,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._contents = contents
        self._outlet = outlet
        self._clock = clock
        self._informed: set[str] = set()
        self._due = clock()

    def report(self, *, is_idle: bool) -> None:
        """Tell what is new, if it is time to.

        Args:
            is_idle: The engine has nothing to do, so nothing more will come for now.
        """
        now = self._clock()
        newcomers = [
            gateway_id
            for gateway_id in self._outlet.gateway_ids()
            if gateway_id not in self._informed
            and self._outlet.gateway_version(gateway_id) >= METRICS_VERSION
        ]
        if not newcomers and not is_idle and now < self._due:
            return
        self._due = now + REPORT_INTERVAL_S
        changes = self._contents.take_cache_changes()
        if changes is not None:
            self._send(self._informed, changes)
        if newcomers:
            self._send(newcomers, ContentChanges(True, self._contents.cached_blocks(), ()))
            self._informed.update(newcomers)

    def forget_gateway(self, gateway_id: str) -> None:
        """A gateway is gone; if it comes back, it knows nothing."""
        self._informed.discard(gateway_id)

    def _send(self, gateway_ids: Sequence[str] | set[str], changes: ContentChanges) -> None:
        added, removed = changes.added, changes.removed
        num_messages = max(1, -(-max(len(added), len(removed)) // MAX_HASHES))
        for number in range(num_messages):
            part = slice(number * MAX_HASHES, (number + 1) * MAX_HASHES)
            message = CachedBlocks(
                is_reset=changes.is_reset and number == 0,
                added=added[part],
                removed=removed[part],
            )
            for gateway_id in gateway_ids:
                self._outlet.send(gateway_id, message)
