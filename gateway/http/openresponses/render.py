"""Whole responses and their event streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.http.error_table import ERROR_TABLE
from gateway.http.openresponses.items import Item, ItemMaker
from gateway.request.events import ChoiceFinished, GenerationEvent
from protocol.errors import PenstockError
from protocol.wire.messages import Usage

PING: Final = b": ping\n\n"
_DONE: Final = b"data: [DONE]\n\n"
_ERROR_CODES: Final = {"rate_limit_exceeded": "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What a response says of itself.

    Attributes:
        id: `resp_…`.
        created: Unix seconds.
        echo_json: What it repeats of the request.
        clock: Unix seconds, for the end.
    """

    id: str
    created: int
    model: str
    echo_json: str
    clock: Callable[[], float]


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
        self._echo: dict[str, Any] = orjson.loads(head.echo_json)
        self.items: list[Item] = []
        self.is_cut = False

    @property
    def status(self) -> str:
        """At its end, when it went well."""
        return "incomplete" if self.is_cut else "completed"

    def item_status(self, item: Item) -> str:
        """Of an item that is over: the last one of a response that was cut was cut, too."""
        return self.status if item is self.items[-1] else "completed"

    def as_object(
        self, status: str, usage: Usage | None = None, error: PenstockError | None = None
    ) -> dict[str, Any]:
        """The whole object."""
        head = self._head
        is_over = status in ("completed", "incomplete", "failed")
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": head.id,
            "object": "response",
            "created_at": head.created,
            "completed_at": int(head.clock()) if status == "completed" else None,
            "status": status,
            "model": head.model,
            "error": None if error is None else _error(error),
            "incomplete_details": reason,
            "output": (
                [item.as_object(self.item_status(item)) for item in self.items] if is_over else []
            ),
            "usage": None if usage is None else usage_object(usage),
            **self._echo,
        }


class ResponseCollector:
    """Makes a whole response of the events of one choice."""

    def __init__(self, head: ResponseHead, maker: ItemMaker) -> None:
        self._response = _Response(head)
        self._maker = maker

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        items = self._response.items
        for event in events:
            if isinstance(event, ChoiceFinished):
                self._response.is_cut = event.finish_reason == "length"
                for item in items:
                    list(item.closing())  # takes what was held back
                continue
            begun = self._maker.next_item(event, items[-1] if items else None)
            if begun is not None:
                items.append(begun)
            piece = self._maker.piece(event)
            if piece is not None:
                items[-1].delta(*piece)

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        return orjson.dumps(self._response.as_object(self._response.status, usage))


class ResponseStreamRenderer:
    """Numbered events of one choice."""

    ping = PING

    def __init__(self, head: ResponseHead, maker: ItemMaker) -> None:
        self._response = _Response(head)
        self._maker = maker
        self._number = 0
        self._item: Item | None = None

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        self._begin(parts)
        for event in events:
            if isinstance(event, ChoiceFinished):
                self._response.is_cut = event.finish_reason == "length"
                continue
            item = self._maker.next_item(event, self._item)
            if item is not None:
                self._open(parts, item)
            piece = self._maker.piece(event)
            if piece is not None and self._item is not None:
                delta = self._item.delta(*piece)
                if delta is not None:
                    self._tell(parts, self._placed(delta))
        return b"".join(parts)

    def finish(self, usage: Usage) -> bytes:
        """The end of the last item and of the response."""
        parts: list[bytes] = []
        self._begin(parts)
        self._close(parts, self._response.status)
        status = self._response.status
        response = self._response.as_object(status, usage)
        self._tell(parts, {"type": f"response.{status}", "response": response})
        return b"".join((*parts, _DONE))

    def fail(self, error: PenstockError) -> bytes:
        """The end of a stream that had begun when it failed."""
        parts: list[bytes] = []
        self._begin(parts)
        row = ERROR_TABLE[error.code]
        flat = {"code": row.code, "message": error.message, "param": error.param}
        self._tell(parts, {"type": "error", **flat})
        self._response.is_cut = True
        response = self._response.as_object("failed", error=error)
        self._tell(parts, {"type": "response.failed", "response": response})
        return b"".join((*parts, _DONE))

    def _begin(self, parts: list[bytes]) -> None:
        if self._number:
            return
        for name in ("created", "in_progress"):
            response = self._response.as_object("in_progress")
            self._tell(parts, {"type": f"response.{name}", "response": response})

    def _open(self, parts: list[bytes], item: Item) -> None:
        self._close(parts, "completed")
        self._item = item
        self._response.items.append(item)
        self._tell_item(parts, "added", "in_progress")
        for event in item.opening():
            self._tell(parts, self._placed(event))

    def _close(self, parts: list[bytes], status: str) -> None:
        if self._item is None:
            return
        for event in self._item.closing():
            self._tell(parts, self._placed(event))
        self._tell_item(parts, "done", status)
        self._item = None

    def _tell_item(self, parts: list[bytes], name: str, status: str) -> None:
        assert self._item is not None
        place = len(self._response.items) - 1
        shown = {"output_index": place, "item": self._item.as_object(status)}
        self._tell(parts, {"type": f"response.output_item.{name}", **shown})

    def _placed(self, event: dict[str, Any]) -> dict[str, Any]:
        assert self._item is not None
        place = len(self._response.items) - 1
        return {**event, "item_id": self._item.id, "output_index": place}

    def _tell(self, parts: list[bytes], event: dict[str, Any]) -> None:
        event["sequence_number"] = self._number
        self._number += 1
        parts += (b"event: ", event["type"].encode(), b"\ndata: ", orjson.dumps(event), b"\n\n")


def _error(error: PenstockError) -> dict[str, str]:
    """Of a response that failed."""
    row = ERROR_TABLE[error.code]
    is_request = row.status == 400
    code = _ERROR_CODES.get(row.code, "invalid_prompt" if is_request else "server_error")
    return {"code": code, "message": error.message}
