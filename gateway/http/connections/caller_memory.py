"""What WebSockets remember between two messages, bounded by caller: the oldest is forgotten."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class CallerMemory:
    """The bytes that each caller's WebSockets remember, whose number has hardly a bound.

    Args:
        max_bytes: Of one caller.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._callers: dict[bytes, _Remembered] = {}

    def set(
        self, caller: bytes, name: Hashable, num_bytes: int, forget: Callable[[], object]
    ) -> None:
        """Something is remembered; what the caller remembers for longest may have to go for it.

        Args:
            caller: Whose it is.
            name: Of it, under which nothing else is remembered.
            num_bytes: Of it.
            forget: Called when it has to go.
        """
        held = self._callers.setdefault(caller, _Remembered())
        held.things[name] = num_bytes, forget
        held.num_bytes += num_bytes
        while held.num_bytes > self._max_bytes:
            oldest = next(iter(held.things))
            _, forget_oldest = held.things[oldest]
            self.drop(caller, oldest)
            forget_oldest()

    def drop(self, caller: bytes, name: Hashable) -> None:
        """Something isn't remembered any more; idempotent."""
        held = self._callers.get(caller)
        if held is None or name not in held.things:
            return
        num_bytes, _ = held.things.pop(name)
        held.num_bytes -= num_bytes
        if not held.things:
            del self._callers[caller]


class _Remembered:
    """What one caller's WebSockets remember, in the order in which they began to."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.things: OrderedDict[Hashable, tuple[int, Callable[[], object]]] = OrderedDict()
