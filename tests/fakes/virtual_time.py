"""An event loop whose clock jumps to the next timer: hours pass at once, in the same order."""

import asyncio
import selectors
from collections.abc import Sequence
from typing import Any


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: the time that it was to wait has passed when it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits for something that nobody will ever do")
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Without sockets and threads: nothing but timers and what they lead to."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


async def idle() -> None:
    """Let everything run that waits for no timer."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ended(*tasks: "asyncio.Task[Any]") -> Sequence[Any]:
    """Whatever the tasks came to, errors included."""
    return await asyncio.gather(*tasks, return_exceptions=True)
