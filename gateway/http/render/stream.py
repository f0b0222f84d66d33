"""Server-sent events from byte templates: only what changes is encoded again for each event."""

from collections.abc import Sequence
from typing import Protocol

import orjson

from gateway.http.errors.error_table import render_error_event
from gateway.http.render.common import AnswerHead, usage_object
from gateway.http.render.custom_calls import CustomDeltas
from gateway.http.render.functions import finish_reason, function_delta
from gateway.http.render.logprobs import CompletionLogprobs, chat_logprobs
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    PromptReport,
    PromptShown,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
    UsageTold,
)
from gateway.request.jobs.answer_options import PLAIN_ANSWER, AnswerOptions
from protocol.errors import PenstockError
from protocol.wire.messages import Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment; clients skip it, proxies see that the stream lives (html.spec.whatwg.org, SSE)."""


_UNFINISHED = b',"logprobs":null,"finish_reason":null'
_END = b"}\n\n"


class StreamRenderer(Protocol):
    """Turns the events of one request into the bytes of its event stream."""

    def ping(self) -> bytes:
        """What a silent stream gets."""
        ...

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        ...

    def finish(self, usage: Usage) -> bytes:
        """The usage chunk, if the client asked for it, and the closing mark."""
        ...

    def fail(self, error: PenstockError) -> bytes:
        """The end of a stream that had begun when it failed."""
        ...


class _ChunkRenderer:
    """What streams of OpenAI's chunks have in common."""

    def __init__(self, head: AnswerHead, kind: str, options: AnswerOptions) -> None:
        self._options = options
        self._head = b'data: %b,"choices":[' % _open_object(head, kind)
        self._warnings = head.budget_warnings
        self._timings = head.timings

    def ping(self) -> bytes:
        """What a silent stream gets."""
        return PING

    def fail(self, error: PenstockError) -> bytes:
        """The error object and the closing mark."""
        return b"data: " + render_error_event(error) + b"\n\n" + DONE

    def _last_chunk(self, usage: Usage) -> bytes:
        """Usage, warnings and times in a chunk without choices; none when neither was asked for."""
        told = b""
        if self._warnings is not None:
            told += b',"budget_warnings":%b' % orjson.dumps(self._warnings)
        if self._timings is not None:
            told += b',"timings":%b' % orjson.dumps(self._timings(usage))
        if self._options.include_usage:
            told += b',"usage":%b' % orjson.dumps(usage_object(usage))
        return b"%b]%b}\n\n" % (self._head, told) if told else b""


class ChatStreamRenderer(_ChunkRenderer):
    """Chunks of `chat.completion.chunk`.

    Args:
        head: Of the answer.
        options: What the chunks show; with `include_usage` those before the usage chunk carry
            null, or the usage that was told before.
    """

    def __init__(
        self,
        head: AnswerHead,
        options: AnswerOptions = PLAIN_ANSWER,
    ) -> None:
        super().__init__(head, "chat.completion.chunk", options)
        self._custom = CustomDeltas(options.custom_tools) if options.custom_tools else None
        self._close_chunks(None)
        self._openings: dict[int, bytes] = {}
        self._has_shown_prompt = False

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, UsageTold):
                self._close_chunks(event.usage)
                continue
            opening = self._openings.get(event.choice)
            if opening is None:
                opening = b'%b{"index":%d,"delta":{' % (self._head, event.choice)
                self._openings[event.choice] = opening
                parts += (opening, b'"role":"assistant","content":""', self._opening_tail(event))
            if isinstance(event, ContentText):
                if event.logprobs or event.token_ids:
                    parts += (opening, self._with_tokens(event))
                else:
                    parts += (opening, b'"content":', orjson.dumps(event.text), self._tail)
            elif isinstance(event, ChoiceFinished):
                if self._custom is not None:
                    for delta in self._custom.rest(event.choice):
                        parts += (opening, delta, self._tail)
                parts += (opening, b"}", _finish(event, self._options), self._closing)
            elif isinstance(event, ReasoningText):
                if self._options.shows_reasoning:
                    text = orjson.dumps(event.text)
                    parts += (opening, b'"reasoning_content":', text, self._tail)
            elif not isinstance(event, PromptShown):
                piece = self._call_delta(event)
                if piece is not None:
                    parts += (opening, piece, self._tail)
        return b"".join(parts)

    def finish(self, usage: Usage) -> bytes:
        """The chunk of usage and warnings, if the client asked for them, and the closing mark."""
        return self._last_chunk(usage) + DONE

    def _call_delta(self, event: ToolCallStarted | ToolCallArguments) -> bytes | None:
        if self._custom is not None and self._custom.takes(event):
            return self._custom.delta(event)
        return function_delta(event) if self._options.names_functions else _tool_delta(event)

    def _close_chunks(self, usage: Usage | None) -> None:
        self._closing = _closing(self._options, usage)
        self._tail = b"}" + _UNFINISHED + self._closing

    def _opening_tail(self, event: GenerationEvent) -> bytes:
        """The first of all chunks tells the prompt, when that is asked for."""
        if self._has_shown_prompt or not isinstance(event, PromptShown):
            return self._tail
        self._has_shown_prompt = True
        token_ids = orjson.dumps(event.prompt.prepared.prompt_token_ids)
        return b'%b,"prompt_token_ids":%b%b' % (self._tail[: -len(_END)], token_ids, _END)

    def _with_tokens(self, event: ContentText) -> bytes:
        """A content delta with its tokens, to its end."""
        has_content = event.text or event.logprobs
        delta = b'"content":' + orjson.dumps(event.text) if has_content else b""
        logprobs = b"null"
        if event.logprobs and self._options.num_top_logprobs is not None:
            logprobs = orjson.dumps(chat_logprobs(event.logprobs, self._options))
        return b'%b},"logprobs":%b,"finish_reason":null%b%b' % (
            delta,
            logprobs,
            _token_ids(event),
            self._closing,
        )


class CompletionStreamRenderer(_ChunkRenderer):
    """Chunks of `text_completion`; the arguments are those of `ChatStreamRenderer`."""

    def __init__(
        self,
        head: AnswerHead,
        options: AnswerOptions = PLAIN_ANSWER,
    ) -> None:
        super().__init__(head, "text_completion", options)
        self._closing = _closing(options, None)
        # Of each choice: characters of its output and of its echo, for the offsets of tokens.
        self._lengths: dict[int, int] = {}
        self._echo_lengths: dict[int, int] = {}
        # The choices of a prompt share its report, and what is made of it.
        self._shown_prompts: dict[int, tuple[bytes, bytes]] = {}

    def render(self, events: Sequence[GenerationEvent]) -> bytes:
        """The events of one wake-up as one piece of bytes, in order."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, ContentText):
                text, end = orjson.dumps(event.text), _UNFINISHED
                if event.logprobs or event.token_ids:
                    end = b',"logprobs":%b,"finish_reason":null%b' % (
                        self._logprobs(event),
                        _token_ids(event),
                    )
            elif isinstance(event, ChoiceFinished):
                text, end = b'""', _finish(event, self._options)
            elif isinstance(event, PromptShown):
                text, end = self._prompt(event)
            elif isinstance(event, UsageTold):
                self._closing = _closing(self._options, event.usage)
                continue
            else:
                continue  # nothing is parsed out of completions
            parts.append(
                b'%b{"index":%d,"text":%b%b%b'
                % (self._head, event.choice, text, end, self._closing)
            )
        return b"".join(parts)

    def finish(self, usage: Usage) -> bytes:
        """The chunk of usage and warnings, if the client asked for them, and the closing mark."""
        return self._last_chunk(usage) + DONE

    def _prompt(self, event: PromptShown) -> tuple[bytes, bytes]:
        """The text and the rest of a choice that tells its prompt."""
        if self._options.echoes:
            self._echo_lengths[event.choice] = len(event.prompt.prepared.prompt_text)
        shown = self._shown_prompts.get(id(event.prompt))
        if shown is None:
            shown = self._shown_prompts[id(event.prompt)] = self._show_prompt(event.prompt)
        return shown

    def _show_prompt(self, report: PromptReport) -> tuple[bytes, bytes]:
        options = self._options
        text, logprobs, token_ids = "", b"null", b""
        if options.echoes:
            text = report.prepared.prompt_text
            if options.num_top_logprobs is not None:
                listed = CompletionLogprobs(options)
                listed.add_prompt(report)
                logprobs = orjson.dumps(listed.as_object())
        if options.shows_token_ids:
            token_ids = b',"prompt_token_ids":' + orjson.dumps(report.prepared.prompt_token_ids)
        end = b',"logprobs":%b,"finish_reason":null%b' % (logprobs, token_ids)
        return orjson.dumps(text), end

    def _logprobs(self, event: ContentText) -> bytes:
        if self._options.num_top_logprobs is None:
            return b"null"
        start = self._lengths.get(event.choice, 0)
        listed = CompletionLogprobs(self._options)
        shift = self._echo_lengths.get(event.choice, 0)
        listed.add_output(event.logprobs, event.token_ends, start, shift)
        if event.token_ends:
            self._lengths[event.choice] = event.token_ends[-1]
        return orjson.dumps(listed.as_object())


def _closing(options: AnswerOptions, usage: Usage | None) -> bytes:
    """The end of the only choice of a chunk, and of the chunk."""
    if not options.include_usage:
        return b"}]" + _END
    shown = None if usage is None else usage_object(usage)
    return b'}],"usage":%b%b' % (orjson.dumps(shown), _END)


def _finish(event: ChoiceFinished, options: AnswerOptions) -> bytes:
    """The end of a choice that is finished."""
    reason = orjson.dumps(finish_reason(event.finish_reason, options))
    if event.stop_reason is None:
        return b',"logprobs":null,"finish_reason":%b' % reason
    stop = orjson.dumps(event.stop_reason)
    return b',"logprobs":null,"finish_reason":%b,"stop_reason":%b' % (reason, stop)


def _token_ids(event: ContentText) -> bytes:
    return b',"token_ids":' + orjson.dumps(event.token_ids) if event.token_ids else b""


def _open_object(head: AnswerHead, kind: str) -> bytes:
    fields = {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
    }
    return orjson.dumps(fields)[:-1]


def _tool_delta(event: ToolCallStarted | ToolCallArguments) -> bytes:
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
