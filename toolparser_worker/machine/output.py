"""Sends plain text to its channel, less the white space that turns out to be none of it."""

from typing import Literal

from toolparser_worker.machine.blanks import BLANKS
from toolparser_worker.machine.channels import Channel
from toolparser_worker.machine.event_log import EventLog, TextKind


class TextOutput:
    """Writes content and reasoning to the log of events.

    White space waits for what follows it where it would be dropped before a call or before the
    end of reasoning.

    Args:
        events: The log.
        trims_content: White space before a call is no content.
        trims_reasoning: Which white space around reasoning is none of it.
        finds_calls: Calls are looked for; otherwise all content is content.
        prefix: What the content begins with although the model did not write it.

    """

    def __init__(
        self,
        events: EventLog,
        *,
        trims_content: bool,
        trims_reasoning: Literal["none", "end", "both"],
        finds_calls: bool,
        prefix: str,
    ) -> None:
        self._has_begun = False
        self._has_dropped = False
        self._events = events
        self._trims_content = trims_content
        self._trims_reasoning = trims_reasoning
        self._finds_calls = finds_calls
        self._has_content = False
        self._channel = Channel.CONTENT
        self._blank: list[tuple[str, int]] = []
        self._reasoning_blank: list[tuple[str, int]] = []
        self._at_reasoning_start = True
        if prefix:
            events.text("content", prefix, 0, 0)

    @property
    def awaits_first(self) -> bool:
        """No content but white space has come so far, no call, and nothing in this channel."""
        return not (self._has_begun or self._has_dropped)

    def enter(self, channel: Channel) -> None:
        """Text that comes belongs to this channel."""
        self._has_dropped = False
        if channel is Channel.REASONING and self._channel is not Channel.REASONING:
            self._at_reasoning_start = True
        self._channel = channel

    def emit(self, piece: str, start: int) -> None:
        """Takes text of the current channel that stands at `start` in the whole text."""
        channel = self._channel
        if channel is Channel.REASONING:
            self._emit_reasoning(piece, start)
        elif channel is Channel.CONTENT or channel is Channel.OUTSIDE:
            self._emit_content(piece, start)
        elif piece.strip(BLANKS):
            self._has_dropped = True

    def plain(self) -> tuple[TextKind, str] | None:
        """How text leaves that now comes, if it does so whatever follows it.

        Returns:
            The kind of its events, and the characters that it must not end with for that.
        """
        channel = self._channel
        if channel is Channel.REASONING:
            if self._at_reasoning_start or self._reasoning_blank:
                return None
            return "reasoning", "" if self._trims_reasoning == "none" else BLANKS
        if channel is not Channel.CONTENT and channel is not Channel.OUTSIDE:
            return None
        if not self._finds_calls or (self._has_content and not self._trims_content):
            return "content", ""
        return ("content", BLANKS) if self._has_content and not self._blank else None

    def drop_blank(self) -> None:
        """A call follows: the white space before it is no content."""
        self._blank.clear()
        self._has_begun = True

    def end_reasoning(self) -> None:
        """The reasoning is over: the white space at its end is none of it."""
        self._reasoning_blank.clear()

    def finish(self, *, has_calls: bool) -> None:
        """No more text will come."""
        self._release_reasoning()
        if not has_calls:
            self._release_content()

    def _emit_content(self, piece: str, start: int) -> None:
        if not self._finds_calls or (self._has_content and not self._trims_content):
            self._events.text("content", piece, start, start + len(piece))
            return
        size = len(piece.rstrip(BLANKS))
        if size and not self._trims_content:
            size = len(piece)
        if size:
            self._has_begun = True
            self._has_content = True
            self._release_content()
            self._events.text("content", piece[:size], start, start + size)
        if size < len(piece):
            self._blank.append((piece[size:], start + size))

    def _emit_reasoning(self, piece: str, start: int) -> None:
        if self._trims_reasoning == "both" and self._at_reasoning_start:
            stripped = piece.lstrip(BLANKS)
            start += len(piece) - len(stripped)
            piece = stripped
            if not piece:
                return
        self._at_reasoning_start = False
        size = len(piece) if self._trims_reasoning == "none" else len(piece.rstrip(BLANKS))
        if size:
            self._release_reasoning()
            self._events.text("reasoning", piece[:size], start, start + size)
        if size < len(piece):
            self._reasoning_blank.append((piece[size:], start + size))

    def _release_content(self) -> None:
        for piece, start in self._blank:
            self._events.text("content", piece, start, start + len(piece))
        self._blank.clear()

    def _release_reasoning(self) -> None:
        for piece, start in self._reasoning_blank:
            self._events.text("reasoning", piece, start, start + len(piece))
        self._reasoning_blank.clear()
