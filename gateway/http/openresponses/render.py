"""Whole responses and their events."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.openresponses.already_told import AlreadyTold
from gateway.http.openresponses.events import (
    CompactionEnded,
    HostedCallEnded,
    HostedCallRunning,
    ResponseEvent,
    ToolsListed,
    TurnOver,
)
from gateway.http.openresponses.hosted_items import ListItem
from gateway.http.openresponses.item_maker import ItemMaker
from gateway.http.openresponses.items import Item
from gateway.http.openresponses.stream_script import StreamScript
from gateway.request.delivery.events import ChoiceFinished
from protocol.errors import PenstockError
from protocol.wire.messages import Usage

PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"
_SILENCES: Final = 4
"""Silences, of 15 s each if nobody has set another time, from one word of them to the next."""
_OVER_A_LIMIT: Final = (402, 429)
"""Statuses of a caller's limits, quotas and budgets."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a response says of itself.

    Attributes:
        id: `resp_…`.
        created: Unix seconds.
        echo_json: What it repeats of the request, a JSON object with members.
        clock: Unix seconds, for the end.
        first_number: Of its first event here; what came before was told elsewhere.
        told: What an earlier attempt has told already; None where there was none.
        spent: What was used so far, for a response that fails.
    """

    id: str
    created: int
    model: str
    echo_json: str
    clock: Callable[[], float]
    first_number: int = 0
    told: AlreadyTold | None = None
    spent: Callable[[], Usage] = Usage


@dataclass(frozen=True, slots=True)
class FinalResponse:
    """What a response came to, for the store.

    Attributes:
        status: As in `body`.
        body: The response object, JSON.
        output: Its output items, a JSON array.
    """

    status: str
    body: bytes
    output: bytes


def usage_object(usage: Usage) -> dict[str, Any]:
    """The usage of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _Response:
    """The response object at any moment."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self.items: list[Item] = []
        self.is_cut = False

    def add(self, item: Item) -> Item:
        """Append an item to the output."""
        item.place = len(self.items)
        self.items.append(item)
        return item

    def answered_by(self, model: str) -> None:
        """Who answers, whatever was asked for."""
        self._head = replace(self._head, model=model)

    @property
    def status(self) -> str:
        """At its end, when it went well."""
        return "incomplete" if self.is_cut else "completed"

    def item_status(self, item: Item) -> str:
        """At the end: the last one of a response that was cut was cut, too, unless it was over."""
        was_cut = item is self.items[-1] and not item.is_over
        return self.status if was_cut else "completed"

    def final(
        self, status: str, usage: Usage | None = None, error: PenstockError | None = None
    ) -> FinalResponse:
        """What it came to."""
        items = [item.as_object(self.item_status(item)) for item in self.items]
        output = orjson.dumps(items)
        body = self.body(status, usage, error, orjson.Fragment(output))
        return FinalResponse(status, body, output)

    def failed(self, error: PenstockError) -> FinalResponse:
        """What it came to when it failed, with what was spent on it until then."""
        self.is_cut = True
        spent = self._head.spent()
        return self.final("failed", spent if spent.prompt_tokens else None, error)

    def body(
        self,
        status: str,
        usage: Usage | None = None,
        error: PenstockError | None = None,
        output: Any = (),
    ) -> bytes:
        """The whole object, JSON."""
        head = self._head
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        own = {
            "id": head.id,
            "object": "response",
            "created_at": head.created,
            "completed_at": int(head.clock()) if status == "completed" else None,
            "status": status,
            "model": head.model,
            "error": None if error is None else _error(error),
            "incomplete_details": reason,
            "output": output,
            "usage": None if usage is None else usage_object(usage),
        }
        # What is repeated is no more than copied: it may be large, and have numbers of many digits.
        return orjson.dumps(own)[:-1] + b"," + head.echo_json.encode()[1:]


class ResponseCollector:
    """Makes a whole response of the events of one choice.

    Attributes:
        final: What it came to; None before `body`.
        script: Of a stream; there is none.
    """

    script = b""

    def __init__(self, head: ResponseHead, maker: ItemMaker) -> None:
        self.final: FinalResponse | None = None
        self._response = _Response(head)
        self._maker = maker
        self._item: Item | None = None

    def add(self, events: Sequence[ResponseEvent]) -> None:
        """Take the events of one wake-up."""
        response = self._response
        for event in events:
            if isinstance(event, ChoiceFinished):
                response.is_cut = event.finish_reason == "length"
                for item in response.items:
                    list(item.closing())  # takes what was held back
                continue
            if isinstance(event, HostedCallEnded):
                call = self._maker.call(event.id)
                call.ended(event.output, event.error)
                call.is_over = True
            elif isinstance(event, ToolsListed) and isinstance(self._item, ListItem):
                self._item.listed(event.tools, event.error)
                self._leave_item()
            elif isinstance(event, TurnOver):
                self._leave_item()
            begun = self._maker.next_item(event, self._item)
            if begun is not None:
                self._leave_item()
                self._item = response.add(begun)
            piece = self._maker.piece(event)
            if piece is not None and self._item is not None:
                self._item.delta(*piece)
            if isinstance(event, CompactionEnded):
                self._leave_item()

    def _leave_item(self) -> None:
        item, self._item = self._item, None
        if item is not None:
            item.is_over = not item.is_open

    def restore(self, items: Iterable[Item]) -> None:
        """Go on behind items that an earlier attempt has made."""
        for item in items:
            self._response.add(item)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items so far, each as if it were whole."""
        return [item.as_object("completed") for item in self._response.items]

    def fail(self, error: PenstockError) -> bytes:
        """What it came to when it failed after something was done that can't be undone."""
        self.final = self._response.failed(error)
        return self.final.body

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        self.final = self._response.final(self._response.status, usage)
        return self.final.body


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """An event of a stream.

    Attributes:
        type: Also in `body`.
        number: Its sequence number.
        body: JSON.
    """

    type: str
    number: int
    body: bytes

    def as_sse(self) -> bytes:
        """As a server-sent event."""
        return b"event: %b\ndata: %b\n\n" % (self.type.encode(), self.body)


class ResponseEvents:
    """Numbered events of one choice.

    It is long because each thing that a stream tells is a method.

    Attributes:
        final: What the response came to; None before `finish` and `fail`.
    """

    def __init__(self, head: ResponseHead, maker: ItemMaker) -> None:
        self.final: FinalResponse | None = None
        self._response = _Response(head)
        self._maker = maker
        self._first_number = head.first_number
        self._number = head.first_number
        self._num_silences = 0
        self._has_begun = False
        self._told = head.told
        self._item: Item | None = None
        self._begin_of_end: int | None = None
        self._script = StreamScript()
        self._last: tuple[int, list[ToldEvent]] | None = None

    @property
    def first_of_end(self) -> int:
        """The number of the first event of `finish`; what comes from there on may be told again."""
        return self._number if self._begin_of_end is None else self._begin_of_end

    @property
    def script(self) -> bytes:
        """How it was told, for who tells it again (`StreamScript`)."""
        return self._script.as_json()

    def answered_by(self, model: str) -> None:
        """Who answers from now on, whatever was asked for."""
        self._response.answered_by(model)

    def running(self, status: str = "in_progress") -> FinalResponse:
        """What the response is before its end."""
        return FinalResponse(status, self._response.body(status), b"[]")

    def queued(self) -> list[ToldEvent]:
        """The events of a response that waits."""
        told: list[ToldEvent] = []
        for name in ("created", "queued"):
            response = orjson.Fragment(self._response.body("queued"))
            self._tell(told, {"type": f"response.{name}", "response": response})
        return told

    def render(self, events: Sequence[ResponseEvent]) -> list[ToldEvent]:
        """The events of one wake-up, in order."""
        told: list[ToldEvent] = []
        self._begin(told)
        for event in events:
            if isinstance(event, ChoiceFinished):
                self._response.is_cut = event.finish_reason == "length"
                continue
            self._render_hosted(told, event)
            item = self._maker.next_item(event, self._item)
            if item is not None:
                self._open(told, item)
            piece = self._maker.piece(event)
            if piece is not None and self._item is not None:
                delta = self._item.delta(*piece)
                if delta is not None:
                    self._tell(told, _placed(delta, self._item))
            if isinstance(event, CompactionEnded):
                self._close(told, "completed")
        return told

    def silence(self) -> list[ToldEvent]:
        """What is told of a response of which nothing has come for a while.

        It is that it is in progress: at first, and again where it goes on. Clients that give up a
        stream without an event, as Codex does after five minutes, count no comments and no pings.
        """
        told: list[ToldEvent] = []
        self._num_silences += 1
        if self._has_begun and self._num_silences % _SILENCES == 0:
            self._tell_status(told, "in_progress")
        self._begin(told)
        return told

    def restore(self, items: Iterable[Item]) -> None:
        """Go on behind items that an earlier attempt has told."""
        for item in items:
            self._response.add(item)

    def _render_hosted(self, told: list[ToldEvent], event: ResponseEvent) -> None:
        """What the server's own tools do."""
        if isinstance(event, ToolsListed) and isinstance(self._item, ListItem):
            self._item.listed(event.tools, event.error)
            self._close(told, "completed")
        elif isinstance(event, TurnOver):
            self._close(told, "completed")
        elif isinstance(event, HostedCallRunning):
            self._close(told, "completed")
            item = self._maker.call(event.id)
            self._tell(told, _placed(item.running(), item))
        elif isinstance(event, HostedCallEnded):
            item = self._maker.call(event.id)
            self._tell(told, _placed(item.ended(event.output, event.error), item))
            self._tell_item(told, item, "done", "completed")

    def finish(self, usage: Usage) -> list[ToldEvent]:
        """The end of the last item and of the response."""
        told: list[ToldEvent] = []
        self._begin_of_end = self._number
        self._begin(told)
        self._close(told, self._response.status)
        for item in self._response.items:
            if item.is_open:  # the answer was cut before it could be called
                self._tell_item(told, item, "done", "incomplete")
        self._last = (self._number, list(told))
        self._end(told, self._response.final(self._response.status, usage))
        return told

    def fail(self, error: PenstockError) -> list[ToldEvent]:
        """The end of a stream that had begun when it failed, be it after `finish`."""
        told: list[ToldEvent] = []
        if self._last is not None:
            self._number, told = self._last  # nobody has seen that end
            self._script.drop_end()
        self._begin(told)
        row = ERROR_TABLE[error.code]
        flat = {"code": row.code, "message": error.message, "param": error.param}
        self._tell(told, {"type": "error", **flat})
        self._end(told, self._response.failed(error))
        return told

    def _begin(self, told: list[ToldEvent]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        names = ("created", "in_progress") if not self._first_number else ("in_progress",)
        for name in names:
            self._tell_status(told, name)

    def _tell_status(self, told: list[ToldEvent], name: str) -> None:
        """That it was created, or is in progress."""
        response = orjson.Fragment(self._response.body("in_progress"))
        self._tell(told, {"type": f"response.{name}", "response": response})

    def _end(self, told: list[ToldEvent], final: FinalResponse) -> None:
        self.final = final
        response = orjson.Fragment(final.body)
        self._tell(told, {"type": f"response.{final.status}", "response": response})

    def _open(self, told: list[ToldEvent], item: Item) -> None:
        self._close(told, "completed")
        self._item = self._response.add(item)
        self._tell_item(told, item, "added", "in_progress")
        for event in item.opening():
            self._tell(told, _placed(event, item))

    def _close(self, told: list[ToldEvent], status: str) -> None:
        item, self._item = self._item, None
        if item is None:
            return
        for event in item.closing():
            self._tell(told, _placed(event, item))
        if not item.is_open:
            self._tell_item(told, item, "done", status)

    def _tell_item(self, told: list[ToldEvent], item: Item, name: str, status: str) -> None:
        item.is_over = (name, status) == ("done", "completed")
        shown = {"output_index": item.place, "item": item.as_object(status)}
        self._tell(told, {"type": f"response.output_item.{name}", **shown})

    def _tell(self, told: list[ToldEvent], event: dict[str, Any]) -> None:
        if self._told is not None and not self._told.passes(event):
            return
        self._script.note(event)
        event["sequence_number"] = self._number
        told.append(ToldEvent(event["type"], self._number, orjson.dumps(event)))
        self._number += 1


class ResponseStreamRenderer:
    """The same as server-sent events."""

    def __init__(self, head: ResponseHead, maker: ItemMaker) -> None:
        self._events = ResponseEvents(head, maker)

    def ping(self) -> bytes:
        """What a silent stream gets."""
        return b"".join(event.as_sse() for event in self._events.silence()) or PING

    @property
    def final(self) -> FinalResponse | None:
        """What the response came to; None before `finish` and `fail`."""
        return self._events.final

    @property
    def script(self) -> bytes:
        """How it was told, for who tells it again."""
        return self._events.script

    def render(self, events: Sequence[ResponseEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        return b"".join(event.as_sse() for event in self._events.render(events))

    def finish(self, usage: Usage) -> bytes:
        """The end of the last item and of the response."""
        return b"".join((*(event.as_sse() for event in self._events.finish(usage)), DONE))

    def fail(self, error: PenstockError) -> bytes:
        """The end of a stream that had begun when it failed."""
        return b"".join((*(event.as_sse() for event in self._events.fail(error)), DONE))


def _placed(event: dict[str, Any], item: Item) -> dict[str, Any]:
    return {**event, "item_id": item.id, "output_index": item.place}


def _error(error: PenstockError) -> dict[str, str]:
    """Of a response that failed, in the words that OpenAI's clients know.

    There is one for all limits of a caller, and one for all else that no second try mends.
    """
    status = ERROR_TABLE[error.code].status
    if status in _OVER_A_LIMIT:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if status < 500 else "server_error"
    return {"code": code, "message": error.message}
