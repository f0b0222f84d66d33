"""Keeps an engine to one request that may be what kills engines, until it has proved itself."""

import time
from collections.abc import Callable, Sequence

from engine_worker.core.tombstones import ChoiceKey
from protocol.wire.messages import NUM_ALONE_TOKENS, Delta, Failure, Finished

HOLD_S = 5.0
"""Others are kept away for so long while an engine runs empty for a suspect, which asks again."""


class Isolation:
    """Decides who may begin while a request runs alone or is about to; owned by one thread.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._alone: ChoiceKey | None = None
        self._num_left = 0
        self._awaited: ChoiceKey | None = None
        self._awaited_until = 0.0

    def admits(self, key: ChoiceKey, *, is_alone: bool, num_unfinished: int) -> bool:
        """Whether a choice may begin now; it is asked for again later if not.

        Args:
            key: Of the choice.
            is_alone: It is a suspect.
            num_unfinished: Choices that the engine has.
        """
        now = self._clock()
        if self._alone is not None and key != self._alone:
            return False
        if self._awaited is not None and key != self._awaited and now < self._awaited_until:
            return False
        if not is_alone:
            return True
        if num_unfinished and self._alone is None:
            self._awaited, self._awaited_until = key, now + HOLD_S
            return False
        self._awaited = None
        self._alone = key
        self._num_left = NUM_ALONE_TOKENS
        return True

    def on_output(
        self, gateway_id: str, deltas: Sequence[Delta], ends: Sequence[Finished | Failure]
    ) -> None:
        """What a gateway is told; the suspect's tokens and its end are counted."""
        if self._alone is None or self._alone[0] != gateway_id:
            return
        for delta in deltas:
            if (delta.request_id, delta.choice) == self._alone[1:]:
                self._num_left -= len(delta.token_ids)
        is_over = any((end.request_id, end.choice) == self._alone[1:] for end in ends)
        if is_over or self._num_left <= 0:
            self._alone = None

    def forget_gateway(self, gateway_id: str) -> None:
        """A gateway is gone, and its suspect with it."""
        if self._alone is not None and self._alone[0] == gateway_id:
            self._alone = None
        if self._awaited is not None and self._awaited[0] == gateway_id:
            self._awaited = None
