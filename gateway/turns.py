"""A few places for many callers, given out in turn."""

import asyncio
from collections import OrderedDict, deque
from typing import Final

from gateway.errors import DeniedError
from protocol.errors import ErrorCode

_MAX_WAITING_PER_CALLER: Final = 1024


class Turns:
    """A few places, given out in turn: round robin between callers, in order within one.

    Args:
        num_places: In all.
        num_per_caller: Of one caller.
        max_waiting: How many of one caller may wait.
    """

    def __init__(
        self, num_places: int, num_per_caller: int, max_waiting: int = _MAX_WAITING_PER_CALLER
    ) -> None:
        self._max_waiting = max_waiting
        self._num_free = num_places
        self._num_per_caller = num_per_caller
        self._held: dict[bytes, int] = {}
        self._waiting: OrderedDict[bytes, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, caller: bytes) -> None:
        """Wait for a place; `give` gives it back.

        Raises:
            DeniedError: The caller has too many waiting already.
        """
        if self._num_free and not self._waiting and self._may_have(caller):
            self._hold(caller)
            return
        line = self._waiting.setdefault(caller, deque())
        if len(line) >= self._max_waiting:
            raise DeniedError(
                f"{len(line)} requests of this caller are already waiting for their turn; "
                "please try again later.",
                code=ErrorCode.RATE_LIMIT_EXCEEDED,
                retry_after_s=1.0,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._pump()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(caller)
            else:
                self._leave(caller, turn)
            raise

    def give(self, caller: bytes) -> None:
        """Give a place back."""
        self._num_free += 1
        left = self._held[caller] - 1
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]
        self._pump()

    def _may_have(self, caller: bytes) -> bool:
        return self._held.get(caller, 0) < self._num_per_caller

    def _hold(self, caller: bytes) -> None:
        self._num_free -= 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def _leave(self, caller: bytes, turn: "asyncio.Future[None]") -> None:
        line = self._waiting.get(caller)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[caller]

    def _pump(self) -> None:
        for caller in list(self._waiting):
            if not self._num_free:
                return
            if not self._may_have(caller):
                continue
            line = self._waiting[caller]
            turn = line.popleft()
            while turn.done() and line:  # it is being cancelled, and hasn't run yet
                turn = line.popleft()
            # Who had a turn goes behind everybody else.
            self._waiting.move_to_end(caller)
            if not line:
                del self._waiting[caller]
            if not turn.done():
                self._hold(caller)
                turn.set_result(None)
