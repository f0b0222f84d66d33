"""What lines of all batches share: how many are under way, which engines know of, and threads."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from gateway.batches.batch_threads import BatchThreads
from gateway.batches.lines import Wanted
from gateway.request.callers.caller import Caller
from protocol.wire.messages import Settle

_PAUSE_S: Final = 0.05
"""Until it is looked again whether there is room for a line."""


class LineAnswer(NamedTuple):
    """What a route answered to a line."""

    status: int
    headers: dict[str, str]
    body: bytes


Ask = Callable[[str, bytes, Caller], Awaitable[LineAnswer]]
"""Has a route answer a body for somebody."""
OnTheirWay = Mapping[tuple[str, Wanted], int]
"""Lines that have begun and that no engine knows of yet, by endpoint and engines wanted."""
NumFree = Callable[[str, Wanted, OnTheirWay], int | None]
"""How many more requests of an endpoint the engines wanted could take now, beside everybody else's
and the lines on their way; None while none is there."""


class LineRoom:
    """What the lines of all batches share: capacity, threads, clocks, and the process's end.

    Args:
        ask: Has a body answered.
        settle: Puts a settlement into the outbox.
        num_free: See `NumFree`.
        max_lines: Lines under way at a time, of one batch those that wait to be asked again among
            them.
        wall_clock: Unix seconds.
        clock: Monotonic seconds.

    Attributes:
        num_running: Lines under way.
        threads: For what blocks.
    """

    def __init__(
        self,
        *,
        ask: Ask,
        settle: Callable[[Settle], None],
        num_free: NumFree,
        max_lines: int,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.ask = ask
        self.settle = settle
        self.max_lines = max_lines
        self.clock = clock
        self.num_running = 0
        self.threads = BatchThreads()
        self._on_their_way: Counter[tuple[str, Wanted]] = Counter()
        self._num_free = num_free
        self._wall_clock = wall_clock
        self._is_stopping = asyncio.Event()
        self._has_changed = asyncio.Event()

    def now(self) -> int:
        """Unix seconds."""
        return int(self._wall_clock())

    def num_free(self, endpoint: str, wanted: Wanted) -> int | None:
        """How many more lines may be under way; None while no engine wanted is there."""
        found = self._num_free(endpoint, wanted, self._on_their_way)
        return None if found is None else min(found, self.max_lines - self.num_running)

    @property
    def is_stopping(self) -> bool:
        """Whether no more lines are begun."""
        return self._is_stopping.is_set()

    def begin_to_stop(self) -> None:
        """Begin no more lines."""
        self._is_stopping.set()
        self._has_changed.set()

    def begin(self, line: "LineUnderWay") -> None:
        """A line is under way; its engine counts it only once it has its lease and its prompt."""
        self.num_running += 1
        self._on_their_way[line.key] += 1

    def on_known(self, line: "LineUnderWay") -> None:
        """A line's engine counts it from now on, or its model's queue does."""
        self._on_their_way[line.key] -= 1
        if not self._on_their_way[line.key]:
            del self._on_their_way[line.key]
        self._has_changed.set()

    def end(self) -> None:
        """A line is over, or waits, so that another one may have room."""
        self.num_running -= 1
        self._has_changed.set()

    async def wait_for_room(self) -> None:
        """Wait until a line is over, or it is time to look again."""
        self._has_changed.clear()
        if not self.is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._has_changed.wait()

    async def pause(self, duration_s: float) -> None:
        """Wait a while, or until no more lines are begun."""
        with suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._is_stopping.wait()


class LineUnderWay:
    """A line among those under way: it counts from its beginning, and once.

    Args:
        room: Where it counts until an engine knows of it.
        endpoint: Of its batch.
        wanted: Which engines can answer it.

    Attributes:
        key: What it counts as.
    """

    def __init__(self, room: LineRoom, endpoint: str, wanted: Wanted) -> None:
        self.key = endpoint, wanted
        self._room = room
        self._is_known = False
        room.begin(self)

    def on_known(self) -> None:
        """An engine counts it from now on; idempotent."""
        if not self._is_known:
            self._is_known = True
            self._room.on_known(self)

    def wait(self) -> None:
        """It is to be asked again, and meanwhile its place is anybody's."""
        self.on_known()
        self._room.end()

    def go_on(self) -> None:
        """It has waited: it is on its way again."""
        self._is_known = False
        self._room.begin(self)

    def end(self) -> None:
        """It is over."""
        self.wait()
