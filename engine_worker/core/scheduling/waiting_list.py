"""The choices that wait for a slot: best first, with constant cost for those that leave early."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from engine_worker.core.choice.choice import Choice, ChoiceStatus

_MAX_STALE = 64


class WaitingList:
    """A heap by `Choice.order`; choices that have used up their lease wait beside it.

    Who has finished stays in the heap until it comes to the top, or until such entries are the
    most.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Choice]] = []
        self._paused: dict[Choice, None] = {}
        self._num_stale = 0

    def __len__(self) -> int:
        return self.num_ready + len(self._paused)

    @property
    def num_ready(self) -> int:
        """Choices that could run."""
        return len(self._heap) - self._num_stale

    def __iter__(self) -> Iterator[Choice]:
        yield from (one for _, one in self._heap if one.status is not ChoiceStatus.FINISHED)
        yield from self._paused

    def push(self, choice: Choice) -> None:
        """Take a choice in."""
        if choice.is_paused:
            self._paused[choice] = None
        else:
            heappush(self._heap, (choice.order, choice))

    def pop(self) -> Choice:
        """Take the best choice that could run; there has to be one."""
        while True:
            _, choice = heappop(self._heap)
            if choice.status is not ChoiceStatus.FINISHED:
                return choice
            self._num_stale -= 1

    def peek(self) -> Choice | None:
        """The best choice that could run; it stays."""
        while self._heap and self._heap[0][1].status is ChoiceStatus.FINISHED:
            heappop(self._heap)
            self._num_stale -= 1
        return self._heap[0][1] if self._heap else None

    def on_extended(self, choice: Choice) -> None:
        """A choice that was pushed has a longer lease now."""
        if choice in self._paused and not choice.is_paused:
            del self._paused[choice]
            self.push(choice)

    def finish(self, choice: Choice) -> None:
        """A choice that was pushed leaves for good; its status becomes `finished`."""
        choice.status = ChoiceStatus.FINISHED
        if choice in self._paused:
            del self._paused[choice]
            return
        self._num_stale += 1
        if self._num_stale > max(_MAX_STALE, self.num_ready):
            self._heap = [
                entry for entry in self._heap if entry[1].status is not ChoiceStatus.FINISHED
            ]
            heapify(self._heap)
            self._num_stale = 0
