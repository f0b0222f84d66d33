"""Lanes of a WebSocket (`stream_id`): what events say of theirs, and the last response of each."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import orjson

from gateway.http.bodies.parsers import is_stream_id
from gateway.http.connections.caller_memory import CallerMemory
from gateway.http.response_turns.stored_turns import LocalTurn
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS

MAX_LANES: Final = 64
"""Whose last responses a connection remembers."""
_MAX_READ_BYTES: Final = 65_536
"""Of a message that was refused unread; more would hold up the loop."""


def lane_of(message: bytes) -> str:
    """The lane of a message that was refused unread; empty where it can't be told."""
    if b'"stream_id"' not in message or len(message) > _MAX_READ_BYTES:
        return ""
    try:
        value = orjson.loads(message)
    except orjson.JSONDecodeError:
        return ""
    lane = value.get("stream_id") if isinstance(value, dict) else None
    return str(lane) if is_stream_id(lane) else ""


class LaneTurns:
    """The last response of each lane of one connection, which may be continued on any of them.

    Args:
        max_bytes: Of all together; those whose lanes were silent for longest are forgotten.
        memory: What all connections of the caller remember.
        caller: Whose connection it is.
    """

    def __init__(self, max_bytes: int, memory: CallerMemory, caller: bytes) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._caller = caller
        self._last: dict[str, LocalTurn] = {}

    def find(self, response_id: str | None) -> LocalTurn | None:
        """The one with this id, if it is remembered."""
        return next((one for one in self._last.values() if one.response_id == response_id), None)

    def remember(self, lane: str, turn: LocalTurn | None) -> None:
        """The last one of a lane; None forgets the one before."""
        self._drop(lane)
        if turn is None:
            return
        self._last[lane] = turn
        forget = partial(self._last.pop, lane, None)
        self._memory.set(self._caller, (self, lane), len(turn.items), forget)
        num_bytes = sum(len(one.items) for one in self._last.values())
        while len(self._last) > MAX_LANES or num_bytes > self._max_bytes:
            num_bytes -= self._drop(next(iter(self._last)))

    def forget(self, response_id: str | None) -> None:
        """It can't be continued any more."""
        for lane in [lane for lane, one in self._last.items() if one.response_id == response_id]:
            self._drop(lane)

    def close(self) -> None:
        """The connection has ended; idempotent."""
        for lane in list(self._last):
            self._drop(lane)

    def _drop(self, lane: str) -> int:
        """Forget what a lane has, if it has something; its bytes."""
        dropped = self._last.pop(lane, None)
        self._memory.drop(self._caller, (self, lane))
        return 0 if dropped is None else len(dropped.items)


class LaneEvents:
    """Events of one response as its lane tells them.

    Args:
        stream_id: Of the lane; empty for none.
        ignored: Fields of the request without an effect, told with the first event.
    """

    def __init__(self, stream_id: str, ignored: list[str] | None = None) -> None:
        self._always = {"stream_id": stream_id} if stream_id else {}
        self._once: dict[str, Any] = {"ignored_fields": ignored} if ignored else {}
        self._unenforced: Sequence[str] = ()

    def note(self, unenforced: Sequence[str]) -> None:
        """Tell with the next event which keywords no grammar enforces, where that is new."""
        if unenforced and unenforced != self._unenforced:
            self._unenforced = unenforced
            self._once["unenforced"] = list(unenforced[:MAX_LISTED_FIELDS])

    def frame(self, body: bytes) -> bytes:
        """An event, a JSON object with members, with what is said of it here."""
        more: dict[str, Any] = {**self._always, **self._once}
        self._once = {}
        return body[:-1] + b"," + orjson.dumps(more)[1:] if more else body
