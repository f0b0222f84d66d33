"""Whether every engine that there is has said by now which model it serves."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.workers.engine_directory import EngineDirectory
from protocol.wire.peers import Peer

_ANNOUNCED: Final = ("ready", "draining")


class Announcements:
    """What this gateway has been told of models, and whether more is to come.

    An engine that was there before this gateway dials it and announces itself; one that doesn't
    within `patience_s` counts as dead. So a name that no engine has announced may still be a
    model's right after the start, and is nobody's later on.

    Args:
        configured: Models that are served sooner or later.
        directory: The engines that take work.
        peers: Every connected worker.
        patience_s: How long after the first engine the others may come.
        clock: Monotonic seconds, that of the peers.
    """

    def __init__(
        self,
        configured: Sequence[str],
        directory: EngineDirectory,
        peers: Callable[[], Iterable[Peer]],
        patience_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._configured = configured
        self._directory = directory
        self._peers = peers
        self._patience_s = patience_s
        self._clock = clock

    def are_complete(self) -> bool:
        """Whether a name that no engine has announced is no model's."""
        engines = [peer for peer in self._peers() if peer.role == "engine"]
        if any(peer.phase not in _ANNOUNCED for peer in engines):
            return False
        if self._configured and all(map(self._directory.is_serving, self._configured)):
            return True
        first = min((peer.phase_since for peer in engines if peer.takes_work), default=None)
        return first is not None and self._clock() - first >= self._patience_s
