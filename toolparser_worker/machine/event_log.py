"""Collects the events of one feed, joining neighbours so that a delta yields few of them."""

from typing import Literal

from protocol.wire.messages import ParseEvent

TextKind = Literal["content", "reasoning", "tool_call_arguments"]


class EventLog:
    """What was found since it was last drained, in the order of the text."""

    def __init__(self) -> None:
        self._events: list[ParseEvent] = []
        self._kind: TextKind = "content"
        self._index = 0
        self._pieces: list[str] = []
        self._start = 0
        self._end = 0

    def text(self, kind: TextKind, piece: str, start: int, end: int, index: int = 0) -> None:
        """Adds text that stands at `start:end` of the whole text."""
        if self._pieces:
            if kind == self._kind and start == self._end and index == self._index:
                self._pieces.append(piece)
                self._end = end
                return
            self._close_run()
        self._kind = kind
        self._index = index
        self._pieces.append(piece)
        self._start = start
        self._end = end

    def call_start(self, index: int, call_id: str, name: str, start: int, end: int) -> None:
        """Adds the beginning of a call."""
        self._close_run()
        self._events.append(
            ParseEvent(
                kind="tool_call_start", index=index, id=call_id, name=name, start=start, end=end
            )
        )

    def call_end(self, index: int, offset: int) -> None:
        """Adds the end of a call."""
        self._close_run()
        self._events.append(ParseEvent(kind="tool_call_end", index=index, start=offset, end=offset))

    def drain(self) -> tuple[ParseEvent, ...]:
        """All events so far; the log is empty afterwards."""
        if not self._pieces and not self._events:
            return ()
        self._close_run()
        events = tuple(self._events)
        self._events.clear()
        return events

    def _close_run(self) -> None:
        if not self._pieces:
            return
        pieces = self._pieces
        self._events.append(
            ParseEvent(
                kind=self._kind,
                text=pieces[0] if len(pieces) == 1 else "".join(pieces),
                index=self._index,
                start=self._start,
                end=self._end,
            )
        )
        pieces.clear()
