"""The items of one response as they grow."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from gateway.http.openresponses.sealing import sealed
from gateway.http.render.custom_calls import CustomInput
from gateway.request.delivery.events import ToolCallStarted

Event = dict[str, Any]
"""Of a stream, without its sequence number and the place of its item."""
_STATUS: Final = ("in_progress", "completed", "incomplete")


class Item(ABC):
    """An item of the output.

    Args:
        item_id: Unique within the server.

    Attributes:
        place: In the output.
        is_open: Whether something of it comes when the model has said all of it.
        is_over: Whether it is whole, whatever becomes of its response.
    """

    prefix: ClassVar[str]

    def __init__(self, item_id: str) -> None:
        self.id = f"{self.prefix}_{item_id}"
        self.pieces: list[str] = []
        self.place = 0
        self.is_open = False
        self.is_over = False

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    @abstractmethod
    def as_object(self, status: str) -> dict[str, Any]:
        """The item as it is now; `in_progress` shows nothing of its text yet."""

    def opening(self) -> Iterator[Event]:
        """Events behind `output_item.added`."""
        return iter(())

    @abstractmethod
    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """The event of more text, which it takes; None where nothing is to be told yet."""

    @abstractmethod
    def closing(self) -> Iterator[Event]:
        """Events before `output_item.done`."""


class MessageItem(Item):
    """Visible text."""

    prefix = "msg"

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self.logprobs: list[Any] = []

    def _part(self, text: str, logprobs: Sequence[Any]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def as_object(self, status: str) -> dict[str, Any]:
        """With one part."""
        content = [] if status == "in_progress" else [self._part(self.text, self.logprobs)]
        return {
            "type": "message",
            "id": self.id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def opening(self) -> Iterator[Event]:
        """An empty part."""
        part = self._part("", [])
        yield {"type": "response.content_part.added", "content_index": 0, "part": part}

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More text."""
        self.pieces.append(text)
        self.logprobs += logprobs
        return {
            "type": "response.output_text.delta",
            "content_index": 0,
            "delta": text,
            "logprobs": logprobs,
        }

    def closing(self) -> Iterator[Event]:
        """All of the text, and of the part."""
        text, logprobs = self.text, self.logprobs
        done = {"content_index": 0, "text": text, "logprobs": logprobs}
        yield {"type": "response.output_text.done", **done}
        part = self._part(text, logprobs)
        yield {"type": "response.content_part.done", "content_index": 0, "part": part}


class ReasoningItem(Item):
    """What the model thought, told as a summary of one part.

    Args:
        item_id: Unique within the server.
        is_sealed: Whether it is told as an opaque text, too.
    """

    prefix = "rs"

    def __init__(self, item_id: str, *, is_sealed: bool) -> None:
        super().__init__(item_id)
        self._is_sealed = is_sealed

    def as_object(self, status: str) -> dict[str, Any]:
        """With one part."""
        text = self.text
        found: dict[str, Any] = {"type": "reasoning", "id": self.id, "status": status}
        found["summary"] = [] if status == "in_progress" else [_summary(text)]
        if self._is_sealed and status != "in_progress":
            found["encrypted_content"] = sealed(text)
        return found

    def opening(self) -> Iterator[Event]:
        """An empty part."""
        added = {"summary_index": 0, "part": _summary("")}
        yield {"type": "response.reasoning_summary_part.added", **added}

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More text."""
        self.pieces.append(text)
        return {
            "type": "response.reasoning_summary_text.delta",
            "summary_index": 0,
            "delta": text,
        }

    def closing(self) -> Iterator[Event]:
        """All of the text, and of the part."""
        text = self.text
        done = {"summary_index": 0, "text": text}
        yield {"type": "response.reasoning_summary_text.done", **done}
        part = {"summary_index": 0, "part": _summary(text)}
        yield {"type": "response.reasoning_summary_part.done", **part}


class CallItem(Item):
    """The call of a function.

    Args:
        item_id: Unique within the server.
        call: What was called.
        space: Namespace and own name of the tool, where it is in one.
    """

    prefix = "fc"

    def __init__(self, item_id: str, call: ToolCallStarted, space: tuple[str, str] | None) -> None:
        super().__init__(item_id)
        self._call_id = call.id
        self._name = call.name if space is None else space[1]
        self._space = None if space is None else space[0]

    def as_object(self, status: str) -> dict[str, Any]:
        """With its arguments."""
        return {
            "type": "function_call",
            "id": self.id,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "" if status == "in_progress" else self.text,
            "status": status,
            **({} if self._space is None else {"namespace": self._space}),
        }

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More of the arguments."""
        self.pieces.append(text)
        return {"type": "response.function_call_arguments.delta", "delta": text}

    def closing(self) -> Iterator[Event]:
        """All of the arguments."""
        done = {"name": self._name, "arguments": self.text}
        yield {"type": "response.function_call_arguments.done", **done}


class CustomCallItem(CallItem):
    """The call of a custom tool, whose input is text."""

    prefix = "ctc"

    def __init__(self, item_id: str, call: ToolCallStarted, space: tuple[str, str] | None) -> None:
        super().__init__(item_id, call, space)
        self._reader = CustomInput()

    def as_object(self, status: str) -> dict[str, Any]:
        """With its input."""
        found = super().as_object(status)
        found["type"] = "custom_tool_call"
        found["input"] = found.pop("arguments")
        return found

    def delta(self, text: str, logprobs: Sequence[Any]) -> Event | None:
        """More of the input."""
        return self._told(self._reader.feed(text))

    def closing(self) -> Iterator[Event]:
        """What was held back, and all of the input."""
        rest = self._told(self._reader.finish())
        if rest is not None:
            yield rest
        yield {"type": "response.custom_tool_call_input.done", "input": self.text}

    def _told(self, text: str) -> Event | None:
        if not text:
            return None
        self.pieces.append(text)
        return {"type": "response.custom_tool_call_input.delta", "delta": text}


def _summary(text: str) -> dict[str, str]:
    return {"type": "summary_text", "text": text}
