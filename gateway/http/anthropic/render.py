"""Whole Messages answers and their event streams: blocks, one after the other."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

import orjson

from gateway.http.anthropic.conversation import their_call_id, tool_input
from gateway.http.anthropic.errors import render_error_object
from gateway.http.render.call_arguments import arguments_object
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    PromptShown,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
    UsageTold,
)
from protocol.errors import PenstockError
from protocol.wire.messages import Usage

BlockKind = Literal["text", "thinking", "tool_use"]
PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


@dataclass(frozen=True, slots=True)
class MessageHead:
    """What an answer says of itself.

    Attributes:
        id: `msg_…`.
        max_model_len: Tokens of prompt and output that fit; 0 where that isn't known.
        max_tokens: Of the output, as asked for; None where the request didn't say.
        shows_thinking: Whether reasoning is told.
    """

    id: str
    model: str
    request_id: str
    max_model_len: int = 0
    max_tokens: int | None = None
    shows_thinking: bool = True


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage: cached tokens stand beside those that were computed."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }


def signature_of(thinking: str) -> str:
    """What a thinking block is signed with; opaque to clients, and ignored when it comes back."""
    digest = blake2b(thinking.encode("utf-8", "surrogatepass"), digest_size=24).digest()
    return b64encode(digest).decode("ascii")


class _Block:
    """A block as it grows."""

    def __init__(self, kind: BlockKind, call: ToolCallStarted | None = None) -> None:
        self.kind: BlockKind = kind
        self.call = call
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_call(self) -> bool:
        """Whether there is something to run: the call of a tool whose input can be read."""
        return self.kind == "tool_use" and arguments_object(self.text) is not None

    def opening(self) -> dict[str, Any]:
        """As it stands in `content_block_start`."""
        if self.call is not None:
            call_id = their_call_id(self.call.id)
            return {"type": "tool_use", "id": call_id, "name": self.call.name, "input": {}}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def whole(self) -> dict[str, Any]:
        """As it stands in a whole answer."""
        if self.kind == "tool_use":
            return self.opening() | {"input": tool_input(self.text)}
        if self.kind == "thinking":
            signature = signature_of(self.text)
            return {"type": "thinking", "thinking": self.text, "signature": signature}
        return {"type": "text", "text": self.text}

    def delta(self, text: str) -> bytes:
        """More of it, as in `content_block_delta`."""
        kind, name = _DELTAS[self.kind]
        return b'{"type":"%b","%b":%b}' % (kind, name, orjson.dumps(text))


_DELTAS: Final[dict[BlockKind, tuple[bytes, bytes]]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}


def stop_of(event: ChoiceFinished, head: MessageHead, calls: Iterable[bool]) -> dict[str, Any]:
    """`stop_reason` and `stop_sequence`.

    An answer that filled the context was ended by it, unless it had all tokens that it might have.

    Args:
        event: The end of the answer.
        head: Of the answer.
        calls: Of each call of a tool, whether its input can be read.
    """
    reason, sequence, told = "end_turn", None, list(calls)
    if event.finish_reason == "length":
        usage = event.usage
        is_full = 0 < head.max_model_len <= usage.prompt_tokens + usage.completion_tokens
        has_all = head.max_tokens is not None and usage.completion_tokens >= head.max_tokens
        reason = "model_context_window_exceeded" if is_full and not has_all else "max_tokens"
    elif isinstance(event.stop_reason, str) and (
        event.finish_reason != "tool_calls" or event.is_call_cut
    ):
        reason, sequence = "stop_sequence", event.stop_reason
    elif told and all(told) and not event.is_call_cut:
        # The input of a call that broke or was cut isn't known: nothing is run of an answer with
        # one.
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _message(head: MessageHead, content: list[Any], stop: Any, usage: Usage) -> dict[str, Any]:
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        **(stop or {"stop_reason": None, "stop_sequence": None}),
        "usage": usage_object(usage),
    }


class MessageCollector:
    """Makes a whole `message` of the events of one choice."""

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._blocks: list[_Block] = []
        self._stop: dict[str, Any] | None = None

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        for event in events:
            if isinstance(event, ChoiceFinished):
                calls = (block.is_call for block in self._blocks if block.kind == "tool_use")
                self._stop = stop_of(event, self._head, calls)
            elif isinstance(event, ToolCallStarted):
                self._blocks.append(_Block("tool_use", event))
            elif (piece := _piece(event, self._head)) is not None:
                kind, text = piece
                if not self._blocks or self._blocks[-1].kind != kind:
                    self._blocks.append(_Block(kind))
                self._blocks[-1].pieces.append(text)

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        content = [block.whole() for block in self._blocks]
        return orjson.dumps(_message(self._head, content, self._stop, usage))


class MessageStreamRenderer:
    """Named events of one choice; the first tells the usage of the prompt."""

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._usage = Usage(prompt_tokens=0, completion_tokens=0)
        self._stop: dict[str, Any] | None = None
        self._has_begun = False
        self._calls: list[bool] = []
        self._block: _Block | None = None
        self._index = -1

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, UsageTold):
                self._usage = event.usage
                continue
            self._begin(parts)
            if isinstance(event, ChoiceFinished):
                self._note_call()
                self._stop = stop_of(event, self._head, self._calls)
            elif isinstance(event, ToolCallStarted):
                self._open(parts, _Block("tool_use", event))
            elif (piece := _piece(event, self._head)) is not None:
                self._grow(parts, *piece)
        return b"".join(parts)

    def ping(self) -> bytes:
        """What a silent stream gets."""
        return PING

    def finish(self, usage: Usage) -> bytes:
        """The end of the last block, the usage and the end of the message."""
        parts: list[bytes] = []
        self._begin(parts)
        self._close(parts)
        delta = self._stop or {"stop_reason": "end_turn", "stop_sequence": None}
        told = usage_object(usage)
        del told["service_tier"]
        end = orjson.dumps({"type": "message_delta", "delta": delta, "usage": told})
        parts += (b"event: message_delta\ndata: ", end, b"\n\n", _STOP)
        return b"".join(parts)

    def fail(self, error: PenstockError) -> bytes:
        """The end of a stream that failed."""
        return b"event: error\ndata: %b\n\n" % render_error_object(error, self._head.request_id)

    def _begin(self, parts: list[bytes]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        message = _message(self._head, [], None, self._usage)
        start = orjson.dumps({"type": "message_start", "message": message})
        parts += (b"event: message_start\ndata: ", start, b"\n\n")

    def _grow(self, parts: list[bytes], kind: BlockKind, text: str) -> None:
        block = self._block
        if block is None or block.kind != kind:
            block = self._open(parts, _Block(kind))
        if kind != "text":
            block.pieces.append(text)  # for its signature, or to see whether it can be read
        parts.append(self._delta(block.delta(text)))

    def _note_call(self) -> None:
        """A block is over."""
        if self._block is not None and self._block.kind == "tool_use":
            self._calls.append(self._block.is_call)

    def _open(self, parts: list[bytes], block: _Block) -> _Block:
        self._note_call()
        self._close(parts)
        self._block = block
        self._index += 1
        start = {
            "type": "content_block_start",
            "index": self._index,
            "content_block": block.opening(),
        }
        parts += (b"event: content_block_start\ndata: ", orjson.dumps(start), b"\n\n")
        return block

    def _close(self, parts: list[bytes]) -> None:
        block, self._block = self._block, None
        if block is None:
            return
        if block.kind == "thinking":
            signature = orjson.dumps(signature_of(block.text))
            parts.append(self._delta(b'{"type":"signature_delta","signature":%b}' % signature))
        parts.append(
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
            % self._index
        )

    def _delta(self, delta: bytes) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":%b}\n\n' % (self._index, delta)
        )


def _piece(event: GenerationEvent, head: MessageHead) -> tuple[BlockKind, str] | None:
    """The block that an event belongs to, and what it adds; None for nothing."""
    if isinstance(event, ContentText):
        return ("text", event.text) if event.text else None
    if isinstance(event, ReasoningText):
        return ("thinking", event.text) if head.shows_thinking and event.text else None
    if isinstance(event, ToolCallArguments):
        return ("tool_use", event.text) if event.text else None
    assert isinstance(event, PromptShown | UsageTold), event
    return None
