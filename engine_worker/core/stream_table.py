"""The streams that an engine works on, found by identity, request, gateway and deadline."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from engine_worker.core.choice.request import Request
from engine_worker.core.tombstones import ALL_CHOICES, StreamKey

_MAX_STALE = 64


class HasRequest(Protocol):
    """A stream: a request and whatever else belongs to it."""

    @property
    def request(self) -> Request:
        """What is computed."""
        ...


StreamT = TypeVar("StreamT", bound=HasRequest)


class StreamTable(Generic[StreamT]):
    """Every look-up costs as much as what it finds, however many streams wait."""

    def __init__(self) -> None:
        self._streams: dict[StreamKey, StreamT] = {}
        self._choices: dict[tuple[str, str], dict[int, StreamT]] = {}
        self._num_requests: dict[str, int] = {}
        self._num_tokens: dict[str, int] = {}
        self._counted: dict[StreamKey, int] = {}
        # (deadline, arrival, stream); who ended earlier stays in until it comes to the top.
        self._deadlines: list[tuple[float, int, StreamT]] = []

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, key: StreamKey) -> StreamT:
        return self._streams[key]

    def __iter__(self) -> Iterator[StreamT]:
        return iter(self._streams.values())

    def get(self, key: StreamKey) -> StreamT | None:
        """The stream of this identity."""
        return self._streams.get(key)

    def add(self, stream: StreamT) -> None:
        """Take a stream in; its identity must not be in use."""
        request = stream.request
        gateway_id, request_id, choice = request.key
        assert request.key not in self._streams
        self._streams[request.key] = stream
        self._choices.setdefault((gateway_id, request_id), {})[choice] = stream
        self._num_requests[gateway_id] = self._num_requests.get(gateway_id, 0) + 1
        self.count_tokens(request)
        heappush(self._deadlines, (request.deadline, request.arrival, stream))

    def count_tokens(self, request: Request) -> None:
        """A request in the table has grown."""
        num_new = request.num_tokens - self._counted.get(request.key, 0)
        self._counted[request.key] = request.num_tokens
        gateway_id = request.gateway_id
        self._num_tokens[gateway_id] = self._num_tokens.get(gateway_id, 0) + num_new

    def remove(self, stream: StreamT) -> None:
        """Let a stream go."""
        request = stream.request
        gateway_id, request_id, choice = request.key
        del self._streams[request.key]
        choices = self._choices[gateway_id, request_id]
        del choices[choice]
        if not choices:
            del self._choices[gateway_id, request_id]
        self._num_requests[gateway_id] -= 1
        self._num_tokens[gateway_id] -= self._counted.pop(request.key)
        if self._num_requests[gateway_id] == 0:
            del self._num_requests[gateway_id]
            del self._num_tokens[gateway_id]
        if len(self._deadlines) > _MAX_STALE + 2 * len(self._streams):
            self._deadlines = [entry for entry in self._deadlines if self._is_here(entry[2])]
            heapify(self._deadlines)

    def of_request(self, key: StreamKey) -> list[StreamT]:
        """The stream of this identity; with `ALL_CHOICES` every choice of the request."""
        gateway_id, request_id, choice = key
        if choice == ALL_CHOICES:
            return list(self._choices.get((gateway_id, request_id), {}).values())
        stream = self._streams.get(key)
        return [] if stream is None else [stream]

    def of_gateway(self, gateway_id: str) -> list[StreamT]:
        """All streams of a gateway; looks at everybody's."""
        return [stream for key, stream in self._streams.items() if key[0] == gateway_id]

    def held(self) -> dict[str, tuple[int, int]]:
        """For each gateway that has any, its streams and their tokens, prompts and outputs."""
        return {
            gateway_id: (count, self._num_tokens[gateway_id])
            for gateway_id, count in self._num_requests.items()
        }

    def next_deadline(self) -> float | None:
        """The earliest deadline."""
        while self._deadlines and not self._is_here(self._deadlines[0][2]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[StreamT]:
        """Streams whose time is up; they stay in the table until they are removed."""
        found = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            found.append(heappop(self._deadlines)[2])
        return found

    def _is_here(self, stream: StreamT) -> bool:
        return self._streams.get(stream.request.key) is stream
