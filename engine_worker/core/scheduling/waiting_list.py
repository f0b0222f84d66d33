"""The requests that wait for a slot: best first, with constant cost for those that leave early."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from engine_worker.core.choice.request import Request, RequestStatus

_MAX_STALE = 64


class WaitingList:
    """A heap by `Request.order`; requests that have used up their lease wait beside it.

    Who has finished stays in the heap until it comes to the top, or until such entries are the
    most.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._paused: dict[Request, None] = {}
        self._num_stale = 0

    def __len__(self) -> int:
        return self.num_ready + len(self._paused)

    @property
    def num_ready(self) -> int:
        """Requests that could run."""
        return len(self._heap) - self._num_stale

    def __iter__(self) -> Iterator[Request]:
        yield from (one for _, one in self._heap if one.status is not RequestStatus.FINISHED)
        yield from self._paused

    def push(self, request: Request) -> None:
        """Take a request in."""
        if request.is_paused:
            self._paused[request] = None
        else:
            heappush(self._heap, (request.order, request))

    def pop(self) -> Request:
        """Take the best request that could run; there has to be one."""
        while True:
            _, request = heappop(self._heap)
            if request.status is not RequestStatus.FINISHED:
                return request
            self._num_stale -= 1

    def on_extended(self, request: Request) -> None:
        """A request that was pushed has a longer lease now."""
        if request in self._paused and not request.is_paused:
            del self._paused[request]
            self.push(request)

    def finish(self, request: Request) -> None:
        """A request that was pushed leaves for good; its status becomes `finished`."""
        request.status = RequestStatus.FINISHED
        if request in self._paused:
            del self._paused[request]
            return
        self._num_stale += 1
        if self._num_stale > max(_MAX_STALE, self.num_ready):
            self._heap = [
                entry for entry in self._heap if entry[1].status is not RequestStatus.FINISHED
            ]
            heapify(self._heap)
            self._num_stale = 0
