"""The two clocks of the authority, injected so that tests own time."""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def wall_s(self) -> float:
        """Unix time in seconds; for what people read and what outlives the process."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never jump; for windows and leases."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The clocks of this machine."""

    def wall_s(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()
