"""Whole answers: collects the events of a request into one JSON object."""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from gateway.events import (
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.render.common import AnswerHead, usage_object
from protocol.messages import Usage


class AnswerCollector(Protocol):
    """Collects the events of one request."""

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        ...

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        ...


class _Call:
    """A tool call as it grows."""

    def __init__(self, event: ToolCallStarted) -> None:
        self.id = event.id
        self.name = event.name
        self.arguments: list[str] = []


class _Choice:
    """A choice as it grows."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[_Call] = []
        self.finish_reason = ""

    def add(self, event: GenerationEvent) -> None:
        if isinstance(event, ContentText):
            self.content.append(event.text)
        elif isinstance(event, ReasoningText):
            self.reasoning.append(event.text)
        elif isinstance(event, ToolCallStarted):
            self.calls.append(_Call(event))
        elif isinstance(event, ToolCallArguments):
            self.calls[event.index].arguments.append(event.text)
        else:
            self.finish_reason = event.finish_reason


class _Collector:
    """The choices of a request by index."""

    def __init__(self, head: AnswerHead, num_choices: int) -> None:
        self._head = head
        self._choices = [_Choice() for _ in range(num_choices)]

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        for event in events:
            self._choices[event.choice].add(event)

    def _render(self, kind: str, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        return orjson.dumps(
            {
                "id": self._head.id,
                "object": kind,
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": usage_object(usage),
                "system_fingerprint": self._head.system_fingerprint,
            }
        )


class ChatCollector(_Collector):
    """Makes a `chat.completion`."""

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        choices = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._render("chat.completion", choices, usage)


class CompletionCollector(_Collector):
    """Makes a `text_completion`."""

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        choices = [
            {
                "index": index,
                "text": "".join(choice.content),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._render("text_completion", choices, usage)


def _message(choice: _Choice) -> dict[str, Any]:
    content = "".join(choice.content)
    message: dict[str, Any] = {
        "role": "assistant",
        # OpenAI sends null beside tool calls when there is no text.
        "content": content if content or not choice.calls else None,
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for call in choice.calls
        ]
    return message
