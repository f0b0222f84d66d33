"""Prompts that were read here a moment ago, whose choices an engine takes although it drains."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

PROMISED_S: Final = 2.0
"""From a prompt's answer to its choices: a grant, a parser's answer, and the way there and back."""


class PromisedPrompts:
    """Which prompts were answered within `PROMISED_S`, and which of them have no choice yet.

    A gateway that hears of the drain gives the engine no new request. One whose prompt was read
    here has begun, and with other weights it could not go on.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # By gateway and request id, in the order of the answers; both times on the clock.
        self._answered: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, str], float] = OrderedDict()

    def on_answered(self, gateway_id: str, request_id: str) -> None:
        """A prompt is about to be answered; in any thread."""
        key, now = (gateway_id, request_id), self._clock()
        with self._lock:
            for prompts in (self._answered, self._waiting):
                _drop_old(prompts, now)
                prompts[key] = now
                prompts.move_to_end(key)

    def take(self, gateway_id: str, request_id: str) -> bool:
        """A choice has come, of a prompt that waits no more; whether it was answered here lately.

        Further choices of it may follow.
        """
        key, now = (gateway_id, request_id), self._clock()
        with self._lock:
            _drop_old(self._answered, now)
            self._waiting.pop(key, None)
            return key in self._answered

    def cancel(self, gateway_id: str, request_id: str) -> None:
        """Nobody will ask for choices of a prompt."""
        with self._lock:
            self._answered.pop((gateway_id, request_id), None)
            self._waiting.pop((gateway_id, request_id), None)

    def forget_gateway(self, gateway_id: str) -> None:
        """A gateway is gone, and nobody else will ask."""
        with self._lock:
            for prompts in (self._answered, self._waiting):
                for key in [key for key in prompts if key[0] == gateway_id]:
                    del prompts[key]

    @property
    def num_waiting(self) -> int:
        """Prompts whose first choice may still come."""
        now = self._clock()
        with self._lock:
            _drop_old(self._waiting, now)
            return len(self._waiting)


def _drop_old(prompts: OrderedDict[tuple[str, str], float], now: float) -> None:
    while prompts:
        key = next(iter(prompts))
        if now - prompts[key] < PROMISED_S:
            return
        del prompts[key]
