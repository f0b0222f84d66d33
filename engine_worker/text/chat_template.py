"""Renders chat messages to the text of a prompt through the model's own template."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from jinja2.exceptions import TemplateError

from engine_worker.errors import (
    ChatTemplateError,
    InvalidRequestError,
    NoChatTemplateError,
    TokenizerLoadError,
    UnsupportedParameterError,
)
from engine_worker.text.chat_messages import JsonObject
from engine_worker.text.control_tokens import ControlTokens, Rendered
from engine_worker.text.history import HistoryRules, probe_rules, shaped
from engine_worker.text.time_limit import OutOfTimeError, limited
from engine_worker.text.tokenizer import Tokenizer

# What the engine itself passes to templates; a client may not set it as a template argument.
_RESERVED_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "messages",
        "penstock_times",
        "return_assistant_tokens_mask",
        "strftime_now",
        "tools",
    }
)
_NEEDED_IN_TEMPLATE = frozenset({"documents", "verbosity"})
"""Arguments that a template which never reads them would leave aside in silence."""
MAX_COMPUTE_S = 10.0
"""Of one conversation, in processor time; the longest take well below a second."""
# What template code raises besides Jinja's own errors.
_RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
# Templates ask for the date with a format that is spelt in them; all are rendered beforehand from
# the request's own time, because the prompt must come out the same on another engine, later.
_TIME_MACRO = "{%- macro strftime_now(format) -%}{{- penstock_times[format] -}}{%- endmacro -%}"
_TIME_FORMAT = re.compile(r"""(["'])((?:(?!\1).)*%(?:(?!\1).)*)\1""")
_NULL_CONTENT = re.compile(r"""content(["']\])?\s+is\s+(not\s+)?none""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Template:
    """One template's source, what it knows, and which messages it can take."""

    source: str
    time_formats: tuple[str, ...]
    knows_tools: bool
    rules: HistoryRules


class _TemplateTimeError(ChatTemplateError):
    """It was stopped."""


class ChatTemplate:
    """The chat template of one model; safe to use from several threads.

    Args:
        tokenizer: Holds the template.
        model: Public name of the model, for messages.
        special_tokens_in_text: Text of a client that spells a control token becomes that token;
            otherwise it stays text.

    Raises:
        TokenizerLoadError: The template computes without an end.
    """

    def __init__(
        self, tokenizer: Tokenizer, model: str, *, special_tokens_in_text: bool = False
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._special_tokens = tokenizer.special_tokens_map()
        plain = tokenizer.chat_template_source(has_tools=False)
        with_tools = tokenizer.chat_template_source(has_tools=True)
        self._plain = None if plain is None else self._examine(plain)
        self._with_tools = (
            self._plain if with_tools is None or with_tools == plain else self._examine(with_tools)
        )
        self._controls: ControlTokens | None = None
        sources = {source for source in (plain, with_tools) if source is not None}
        if sources and not special_tokens_in_text:
            self._controls = ControlTokens(tokenizer, sources)

    @property
    def exists(self) -> bool:
        """Whether chat requests can be served."""
        return self._plain is not None

    def render(
        self,
        messages: list[JsonObject],
        *,
        tools: list[JsonObject] | None = None,
        template_arguments: JsonObject | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_time: int,
    ) -> Rendered:
        """The text of the prompt, for `encode`.

        Args:
            messages: As `parse_messages` returns them.
            tools: As `parse_tools` returns them.
            template_arguments: Further variables of the template (`enable_thinking` …).
            add_generation_prompt: End with the header of the assistant's answer.
            continue_final_message: Leave the last message open, so that the model goes on in it.
            template_time: What the template sees as now, Unix seconds, in UTC.

        Raises:
            NoChatTemplateError: The model has none.
            ChatTemplateError: The template refused the conversation or broke on it.
            InvalidRequestError: A template argument with a reserved name; contradicting options.
            UnsupportedParameterError: Tools for a template that knows none.
        """
        template = self._with_tools if tools else self._plain
        if template is None:
            raise NoChatTemplateError(
                f"The model '{self._model}' has no chat template, so it can't take chat messages;"
                " use /v1/completions with a prompt."
            )
        if tools and not template.knows_tools:
            raise UnsupportedParameterError(
                f"The chat template of the model '{self._model}' knows no tools.", param="tools"
            )
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "'continue_final_message' and 'add_generation_prompt' can't both be true.",
                param="continue_final_message",
            )
        history = shaped(messages, template.rules)
        arguments = _check_arguments(template_arguments or {})
        for name in _NEEDED_IN_TEMPLATE & arguments.keys():
            if name not in template.source:
                raise UnsupportedParameterError(
                    f"The chat template of the model '{self._model}' knows no '{name}'; put it into"
                    " the messages.",
                    param=name,
                )
        controls = self._controls
        if controls is not None:
            history = [controls.mark(message) for message in history]
            tools, arguments = controls.mark_deeply(tools), controls.mark_deeply(arguments)
        text = self._render(
            template,
            history,
            tools,
            arguments,
            template_time,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return Rendered(text) if controls is None else controls.rendered(text)

    def encode(self, prompt: Rendered, is_wanted: Callable[[], bool] | None = None) -> list[int]:
        """The token ids of a prompt that this template made; other threads run meanwhile.

        Args:
            prompt: From `render`.
            is_wanted: See `Tokenizer.encode`.

        Raises:
            InvalidRequestError: The text holds lone surrogates, which no UTF-8 can spell.
            AbandonedError: It is not wanted any more.
        """
        if self._controls is None:
            return self._tokenizer.encode(prompt, add_special_tokens=False, is_wanted=is_wanted)
        return self._controls.encode(prompt, is_wanted)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts of a client, each for itself; none becomes a control token.

        Raises:
            InvalidRequestError: A text holds lone surrogates.
        """
        if self._controls is None:
            return self._tokenizer.encode_texts(texts)
        return self._controls.encode_texts(texts)

    def _render(
        self,
        template: _Template,
        messages: list[JsonObject],
        tools: list[JsonObject] | None,
        arguments: JsonObject,
        template_time: int,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        # transformers' sandboxed renderer without `apply_chat_template` around it, which drops
        # fields that are null although some templates look for them.
        from transformers.utils.chat_template_utils import render_jinja_template

        now = datetime.fromtimestamp(template_time, tz=UTC)
        times = {format_: now.strftime(format_) for format_ in template.time_formats}
        try:
            with limited(MAX_COMPUTE_S):
                rendered, _ = render_jinja_template(
                    conversations=[messages],
                    tools=tools,
                    chat_template=template.source,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **{**arguments, **self._special_tokens, "penstock_times": times},
                )
        except OutOfTimeError:
            raise _TemplateTimeError(
                f"The chat template of the model '{self._model}' computed for more than "
                f"{MAX_COMPUTE_S:g} s and was stopped.",
                param="messages",
            ) from None
        except _RENDER_ERRORS as error:
            message = str(error).strip() or type(error).__name__
            raise ChatTemplateError(
                f"The chat template of the model '{self._model}' refused the messages: "
                f"{message:.500}",
                param="messages",
            ) from error
        text: str = rendered[0]
        return text

    def _examine(self, source: str) -> _Template:
        time_formats: tuple[str, ...] = ()
        if "strftime_now" in source:
            time_formats = tuple({match[2] for match in _TIME_FORMAT.finditer(source)})
        template = _Template(
            source=_TIME_MACRO + source if time_formats else source,
            time_formats=time_formats,
            knows_tools="tools" in source,
            rules=HistoryRules(),
        )
        wants_null_content = _NULL_CONTENT.search(source) is not None

        def render(messages: list[JsonObject]) -> str | None:
            return self._try(template, messages)

        def shows_arguments(arguments: Any) -> bool:
            """Whether a tool call with these arguments comes out of the template as JSON."""
            call = {
                "id": "call_000000000",
                "type": "function",
                "function": {"name": "f", "arguments": arguments},
            }
            content = None if wants_null_content else ""
            text = render(
                [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": content, "tool_calls": [call]},
                ]
            )
            return text is not None and re.search(r'"penstock_probe":\s*"1"', text) is not None

        probe = {"penstock_probe": "1"}
        wants_text = not shows_arguments(probe) and shows_arguments(json.dumps(probe))
        rules = probe_rules(
            render,
            developer="developer" in source,
            null_content=wants_null_content,
            argument_objects=not wants_text,
        )
        return replace(template, rules=rules)

    def _try(self, template: _Template, messages: list[JsonObject]) -> str | None:
        """The text of a short conversation; None when the template refuses it."""
        try:
            return self._render(
                template,
                messages,
                None,
                {},
                0,
                add_generation_prompt=False,
                continue_final_message=False,
            )
        except _TemplateTimeError as error:
            raise TokenizerLoadError(
                f"{error.message} A conversation of a few words was all that it was given: name a "
                "folder with another tokenizer and template by --tokenizer"
            ) from error
        except ChatTemplateError:
            return None


def _check_arguments(arguments: JsonObject) -> JsonObject:
    for name in arguments:
        if name in _RESERVED_ARGUMENTS or name.startswith("_"):
            raise InvalidRequestError(
                f"'chat_template_kwargs.{name:.80}' is set by the server and can't be given.",
                param=f"chat_template_kwargs.{name:.80}",
            )
    return arguments
