"""Server-sent events from byte templates: only what changes is encoded anew for each event."""

from collections.abc import Sequence
from typing import Protocol

import orjson

from gateway.error_table import render_error_event
from gateway.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.render.common import AnswerHead, usage_object
from protocol.errors import PenstockError
from protocol.messages import Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment; clients skip it, proxies see that the stream lives (html.spec.whatwg.org, SSE)."""


class StreamRenderer(Protocol):
    """Turns the events of one request into the bytes of its event stream."""

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        ...

    def finish(self, usage: Usage) -> bytes:
        """The usage chunk, if the client asked for it, and the closing mark."""
        ...


def render_stream_error(error: PenstockError) -> bytes:
    """A stream that already began ends with the error object and the closing mark."""
    return b"data: " + render_error_event(error) + b"\n\n" + DONE


class ChatStreamRenderer:
    """Chunks of `chat.completion.chunk`.

    Args:
        head: Of the answer.
        include_usage: Whether the client asked for the usage chunk; then the others carry null.
    """

    def __init__(self, head: AnswerHead, *, include_usage: bool) -> None:
        self._head, self._tail = _frame(head, "chat.completion.chunk", include_usage)
        self._empty = _empty_chunk(head, "chat.completion.chunk")
        self._include_usage = include_usage
        self._openings: dict[int, bytes] = {}

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        for event in events:
            opening = self._openings.get(event.choice)
            if opening is None:
                opening = b'%b{"index":%d,"delta":{' % (self._head, event.choice)
                self._openings[event.choice] = opening
                parts += (opening, b'"role":"assistant","content":""', self._tail)
            parts.append(opening)
            if isinstance(event, ContentText):
                parts += (b'"content":', orjson.dumps(event.text), self._tail)
            elif isinstance(event, ChoiceFinished):
                parts.append(_finish_tail(event.finish_reason, self._tail))
            else:
                parts += (_delta(event), self._tail)
        return b"".join(parts)

    def finish(self, usage: Usage) -> bytes:
        """The usage chunk, if the client asked for it, and the closing mark."""
        return _usage_chunk(self._empty, usage) + DONE if self._include_usage else DONE


class CompletionStreamRenderer:
    """Chunks of `text_completion`.

    Args:
        head: Of the answer.
        include_usage: Whether the client asked for the usage chunk; then the others carry null.
    """

    def __init__(self, head: AnswerHead, *, include_usage: bool) -> None:
        self._head, _ = _frame(head, "text_completion", include_usage)
        self._empty = _empty_chunk(head, "text_completion")
        self._include_usage = include_usage
        self._closing = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, ContentText):
                text, reason = orjson.dumps(event.text), b"null"
            elif isinstance(event, ChoiceFinished):
                text, reason = b'""', orjson.dumps(event.finish_reason)
            else:
                continue  # nothing is parsed out of completions
            parts.append(
                b'%b{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b}]%b'
                % (self._head, event.choice, text, reason, self._closing)
            )
        return b"".join(parts)

    def finish(self, usage: Usage) -> bytes:
        """The usage chunk, if the client asked for it, and the closing mark."""
        return _usage_chunk(self._empty, usage) + DONE if self._include_usage else DONE


def _frame(head: AnswerHead, kind: str, include_usage: bool) -> tuple[bytes, bytes]:
    """What stands before the choice and after the delta of an unfinished choice."""
    opening = b'data: %b,"choices":[' % _open_object(head, kind)
    usage = b',"usage":null' if include_usage else b""
    return opening, b'},"logprobs":null,"finish_reason":null}]%b}\n\n' % usage


def _finish_tail(finish_reason: str, tail: bytes) -> bytes:
    return tail.replace(
        b'"finish_reason":null', b'"finish_reason":' + orjson.dumps(finish_reason), 1
    )


def _empty_chunk(head: AnswerHead, kind: str) -> bytes:
    return b'data: %b,"choices":[]' % _open_object(head, kind)


def _usage_chunk(empty: bytes, usage: Usage) -> bytes:
    return b'%b,"usage":%b}\n\n' % (empty, orjson.dumps(usage_object(usage)))


def _open_object(head: AnswerHead, kind: str) -> bytes:
    fields = {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
    }
    return orjson.dumps(fields)[:-1]


def _delta(event: ReasoningText | ToolCallStarted | ToolCallArguments) -> bytes:
    if isinstance(event, ReasoningText):
        return b'"reasoning_content":' + orjson.dumps(event.text)
    if isinstance(event, ToolCallArguments):
        return b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (
            event.index,
            orjson.dumps(event.text),
        )
    call = {
        "index": event.index,
        "id": event.id,
        "type": "function",
        "function": {"name": event.name, "arguments": ""},
    }
    return b'"tool_calls":[%b]' % orjson.dumps(call)
