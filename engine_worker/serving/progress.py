"""One counter for all that an engine computes, which stands still while a part of it does."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Side:
    """A thread that computes.

    Attributes:
        count: Grows with what it computes.
        has_work: Whether it should compute something now.
    """

    count: int
    has_work: bool


class Progress:
    """The counter of heartbeats; any thread.

    It moves only when each side that has work has moved: one that hangs is told from the others,
    however much they compute.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counter = 0
        self._counted: tuple[int, ...] = ()

    def count(self, *sides: Side) -> int:
        """The counter, now that the sides stand so; always the same sides in the same order."""
        counts = tuple(side.count for side in sides)
        with self._lock:
            before = self._counted or (0,) * len(sides)
            has_moved = [side.count != old for side, old in zip(sides, before, strict=True)]
            if any(has_moved) and all(
                moved or not side.has_work for side, moved in zip(sides, has_moved, strict=True)
            ):
                self._counter += 1
                self._counted = counts
            return self._counter
