"""A worker handler that records what it is told, for tests of the worker loop."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.wire.messages import Credits, Load

CommandT = TypeVar("CommandT")


class RecordingHandler(Generic[CommandT]):
    """Notes each call; `changed` wakes whoever waits for one."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, CommandT]] = []
        self.lost: list[str] = []
        self.drains: list[float] = []
        self.unfinished = 0
        self.answer: Callable[[str, CommandT], None] | None = None
        self._changed = threading.Condition()

    def on_command(self, gateway_id: str, command: CommandT) -> None:
        if self.answer is not None:
            self.answer(gateway_id, command)
        with self._changed:
            self.commands.append((gateway_id, command))
            self._changed.notify_all()

    def on_gateway_lost(self, gateway_id: str) -> None:
        with self._changed:
            self.lost.append(gateway_id)
            self._changed.notify_all()

    def on_drain(self, timeout_s: float) -> None:
        with self._changed:
            self.drains.append(timeout_s)
            self._changed.notify_all()

    def num_unfinished(self) -> int:
        return self.unfinished

    def load(self) -> Load:
        return Load(num_running=self.unfinished)

    def credits(self, gateway_id: str) -> Credits | None:
        return Credits(max_requests=len(gateway_id), max_tokens=1)

    def progress_counter(self) -> int:
        return len(self.commands)

    def wait_until(self, fact: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Block until something noted makes the fact true."""
        with self._changed:
            if not self._changed.wait_for(fact, timeout_s):
                raise TimeoutError("what was expected did not happen")
