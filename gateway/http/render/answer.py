"""Whole answers: collects the events of a request into one JSON object."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from gateway.http.render.common import AnswerHead, usage_object
from gateway.http.render.custom_calls import tool_call
from gateway.http.render.functions import finish_reason, function_call
from gateway.http.render.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    PromptReport,
    PromptShown,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import PLAIN_ANSWER, AnswerOptions
from protocol.wire.messages import TokenLogprobs, Usage

PIECE_TOKENS = 500
"""Tokens with their log probabilities that are written to JSON at a time: some milliseconds."""


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
        self.prompt: PromptReport | None = None
        self.content: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.token_ends: list[int] = []
        self.token_ids: list[int] = []
        self.reasoning: list[str] = []
        self.calls: list[_Call] = []
        self.finish_reason = ""
        self.stop_reason: str | int | None = None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens: what OpenAI ranks by (platform.openai.com, `best_of`)."""
        if not self.logprobs:
            return -math.inf
        return sum(token.chosen.logprob for token in self.logprobs) / len(self.logprobs)

    def add(self, event: GenerationEvent) -> None:
        if isinstance(event, ContentText):
            self.content.append(event.text)
            self.logprobs += event.logprobs
            self.token_ends += event.token_ends
            self.token_ids += event.token_ids
        elif isinstance(event, ReasoningText):
            self.reasoning.append(event.text)
        elif isinstance(event, ToolCallStarted):
            self.calls.append(_Call(event))
        elif isinstance(event, ToolCallArguments):
            self.calls[event.index].arguments.append(event.text)
        elif isinstance(event, PromptShown):
            self.prompt = event.prompt
        elif isinstance(event, ChoiceFinished):
            self.finish_reason = event.finish_reason
            self.stop_reason = event.stop_reason


def _asked_for(head: AnswerHead, usage: Usage) -> dict[str, Any]:
    """What the answer tells beside OpenAI's fields, because its client asked for it."""
    told: dict[str, Any] = {}
    if head.budget_warnings is not None:
        told["budget_warnings"] = head.budget_warnings
    if head.timings is not None:
        told["timings"] = head.timings(usage)
    return told


class _Collector:
    """The choices of a request by index.

    Args:
        head: Of the answer.
        num_choices: Of all prompts together.
        options: What the answer shows.
    """

    def __init__(
        self, head: AnswerHead, num_choices: int, options: AnswerOptions = PLAIN_ANSWER
    ) -> None:
        self._head = head
        self._options = options
        self._choices = [_Choice() for _ in range(num_choices)]
        # The choices of a prompt share its report, and what is made of it.
        self._prompts: dict[int, orjson.Fragment] = {}

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up."""
        for event in events:
            self._choices[event.choice].add(event)

    def _extras(self, choice: _Choice) -> dict[str, Any]:
        """What a choice has only when there is something to say."""
        extras: dict[str, Any] = {}
        if choice.stop_reason is not None:
            extras["stop_reason"] = choice.stop_reason
        if self._options.shows_token_ids:
            extras["token_ids"] = choice.token_ids
        return extras

    def _prompt_extras(self, choice: _Choice) -> dict[str, Any]:
        """What is told of a choice's prompt."""
        extras: dict[str, Any] = {}
        if choice.prompt is not None and self._options.shows_token_ids:
            extras["prompt_token_ids"] = choice.prompt.prepared.prompt_token_ids
        if choice.prompt is not None and self._options.num_prompt_logprobs is not None:
            shown = self._prompts.get(id(choice.prompt))
            if shown is None:
                listed = prompt_logprobs(choice.prompt, self._options)
                shown = self._prompts[id(choice.prompt)] = _in_pieces(listed)
            extras["prompt_logprobs"] = shown
        return extras

    def _render(
        self, kind: str, choices: list[dict[str, Any]], usage: Usage, **extras: Any
    ) -> bytes:
        return orjson.dumps(
            {
                "id": self._head.id,
                "object": kind,
                "created": self._head.created,
                "model": self._head.model,
                "choices": choices,
                "usage": usage_object(usage),
                "system_fingerprint": self._head.system_fingerprint,
                **extras,
                **_asked_for(self._head, usage),
            }
        )


class ChatCollector(_Collector):
    """Makes a `chat.completion`."""

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        choices = [
            {
                "index": index,
                "message": _message(choice, self._options),
                "logprobs": self._logprobs(choice),
                "finish_reason": finish_reason(choice.finish_reason, self._options),
                **self._extras(choice),
            }
            for index, choice in enumerate(self._choices)
        ]
        # There is one prompt, so what is told of it stands beside the choices.
        extras = self._prompt_extras(self._choices[0])
        return self._render("chat.completion", choices, usage, **extras)

    def _logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        if self._options.num_top_logprobs is None:
            return None
        return _lists_in_pieces(chat_logprobs(choice.logprobs, self._options))


class CompletionCollector(_Collector):
    """Makes a `text_completion`."""

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        choices = [
            {
                "index": index,
                "text": self._text(choice),
                "logprobs": self._logprobs(choice),
                "finish_reason": choice.finish_reason,
                **self._extras(choice),
                **self._prompt_extras(choice),
            }
            for index, choice in enumerate(self._shown())
        ]
        return self._render("text_completion", choices, usage)

    def _shown(self) -> list[_Choice]:
        """The choices, or the best of each prompt, best first."""
        options = self._options
        if not options.ranks:
            return self._choices
        shown: list[_Choice] = []
        for first in range(0, len(self._choices), options.num_choices):
            choices = self._choices[first : first + options.num_choices]
            ranked = sorted(choices, key=lambda choice: choice.mean_logprob, reverse=True)
            shown += ranked[: options.num_answers]
        return shown

    def _echo(self, choice: _Choice) -> str:
        if choice.prompt is None or not self._options.echoes:
            return ""
        return choice.prompt.prepared.prompt_text

    def _text(self, choice: _Choice) -> str:
        return self._echo(choice) + "".join(choice.content)

    def _logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        if self._options.num_top_logprobs is None:
            return None
        logprobs = CompletionLogprobs(self._options)
        if choice.prompt is not None and self._options.echoes:
            logprobs.add_prompt(choice.prompt)
        logprobs.add_output(choice.logprobs, choice.token_ends, 0, len(self._echo(choice)))
        return _lists_in_pieces(logprobs.as_object())


def _in_pieces(items: list[Any]) -> orjson.Fragment:
    """A list as JSON, some items at a time: others run between two calls of the library only."""
    starts = range(0, len(items), PIECE_TOKENS)
    written = [orjson.dumps(items[start : start + PIECE_TOKENS])[1:-1] for start in starts]
    return orjson.Fragment(b"[" + b",".join(written) + b"]")


def _lists_in_pieces(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _in_pieces(item) if isinstance(item, list) and len(item) > PIECE_TOKENS else item
        for name, item in value.items()
    }


def _message(choice: _Choice, options: AnswerOptions) -> dict[str, Any]:
    content = "".join(choice.content)
    message: dict[str, Any] = {
        "role": "assistant",
        # OpenAI sends null beside tool calls when there is no text.
        "content": content if content or not choice.calls else None,
        "refusal": None,
    }
    if choice.reasoning and options.shows_reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    if choice.calls and options.names_functions:
        call = choice.calls[0]
        message["function_call"] = function_call(call.name, "".join(call.arguments))
    elif choice.calls:
        message["tool_calls"] = [
            tool_call(call.id, call.name, "".join(call.arguments), options.custom_tools)
            for call in choice.calls
        ]
    return message
