"""When Python's garbage collector looks for cycles, in processes whose start makes most they hold.

Modules, models and keys stay as long as the process. While they are made, the collector would look
at them again and again, which takes a sixth of a start, and later all threads would stand still
while it does (a tenth of a second in an engine). So each worker's `__main__` calls `start` before
anything else is imported, and `settle` when it serves.
"""

import gc
from typing import Final

_STARTING: Final = (50_000, 100, 100)
"""Young objects only, so that what is garbage already doesn't take new memory."""

THRESHOLDS: Final = (10_000, 20, 100)
"""Ten thousand more young objects are looked at. With five thousand, which 64 requests under way
have among them, it was a twentieth of a gateway's time for a request; with many more one look,
during which all streams stand still, would take longer than the 2 ms of now."""


def start() -> None:
    """Have the collector look at little, because what is made until `settle` stays."""
    gc.set_threshold(*_STARTING)


def settle(thresholds: tuple[int, int, int] = THRESHOLDS) -> None:
    """What is there is never looked at again; what is made from now on is, as usual.

    Args:
        thresholds: See `gc.set_threshold`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
