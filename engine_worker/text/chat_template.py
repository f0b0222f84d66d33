"""Renders chat messages to the text of a prompt through the model's own template."""

import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from engine_worker.errors import (
    ChatTemplateError,
    InvalidRequestError,
    NoChatTemplateError,
    TokenizerLoadError,
    UnsupportedParameterError,
)
from engine_worker.text.chat_messages import JsonObject
from engine_worker.text.control_tokens import ControlTokens, Rendered
from engine_worker.text.history import HistoryRules, shaped
from engine_worker.text.history_probes import (
    line_breaks,
    probe_rules,
    shows_calls,
    wants_argument_texts,
    with_place_of_text,
)
from engine_worker.text.template_renderer import (
    MAX_COMPUTE_S,
    RENDERER,
    TemplateCostError,
    TemplateRefusedError,
)
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
_NEEDED_IN_TEMPLATE = frozenset({"documents"})
"""Arguments that a template which never reads them would ignore silently."""
_EXAMINATION_COMPUTE_S = 2.0
"""Of one conversation of a few words, by which a template is examined."""
MAX_REQUEST_TEMPLATES = 16
"""Templates that came with requests and are kept examined."""
# Templates ask for the date with a format that is spelt in them; all are rendered beforehand from
# the request's own time, because the prompt must come out the same on another engine, later.
_TIME_MACRO = "{%- macro strftime_now(format) -%}{{- penstock_times[format] -}}{%- endmacro -%}"
# Bounded, because a client's template may be full of them.
_TIME_FORMAT = re.compile(r"""(["'])([^"'%\n]{0,128}%[^"'\n]{0,128})\1""")
_NULL_CONTENT = re.compile(r"""content(["']\])?\s+is\s+(not\s+)?none""", re.IGNORECASE)

_PROBE_INSTRUCTION: JsonObject = {"role": "system", "content": "Be brief."}
_PROBE_TOOL_UNDESCRIBED: JsonObject = {
    "type": "function",
    "function": {"name": "penstock_probe", "parameters": {}},
}
_PROBE_TOOL: JsonObject = {
    "type": "function",
    "function": {"name": "penstock_probe", "description": "", "parameters": {}},
}


@dataclass(frozen=True, slots=True)
class _Template:
    """One template's source, what it knows, and which messages it can take.

    Attributes:
        needs_descriptions: It refuses tools without a description.
        reads_tools_of_system: It knows tools as JSON text, a field of the system message.
    """

    source: str
    time_formats: tuple[str, ...]
    knows_tools: bool
    needs_descriptions: bool
    reads_tools_of_system: bool
    escapes: bool
    is_ours: bool
    rules: HistoryRules


class _TemplateStoppedError(ChatTemplateError):
    """It takes too much time or memory."""


class ChatTemplate:
    """The chat template of one model; safe to use from several threads.

    Args:
        tokenizer: Holds the template.
        model: Public name of the model, for messages.
        special_tokens_in_text: Text of a client that spells a control token becomes that token;
            otherwise it stays text.

    Raises:
        TokenizerLoadError: The template takes too much time or memory.
    """

    def __init__(
        self, tokenizer: Tokenizer, model: str, *, special_tokens_in_text: bool = False
    ) -> None:
        self._model = model
        self._whose = f"the model '{model}'"
        self._tokenizer = tokenizer
        self._special_tokens = tokenizer.special_tokens_map()
        self._lock = threading.Lock()
        self._of_requests: dict[str, _Template] = {}
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

    @property
    def knows_verbosity(self) -> bool:
        """Whether it asks how long answers should be."""
        return self._plain is not None and "verbosity" in self._plain.source

    def render(
        self,
        messages: list[JsonObject],
        *,
        tools: list[JsonObject] | None = None,
        template_arguments: JsonObject | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_time: int,
        source: str | None = None,
    ) -> Rendered:
        """The text of the prompt, for `encode`.

        Args:
            messages: As `parse_messages` returns them.
            tools: As `parse_tools` returns them.
            template_arguments: Further variables of the template (`enable_thinking` …).
            add_generation_prompt: End with the header of the assistant's answer.
            continue_final_message: Leave the last message open, so that the model goes on in it.
            template_time: What the template sees as now, Unix seconds, in UTC.
            source: Another template, of the request. What it writes may be control tokens; what the
                messages spell may not, unless it is the only template.

        Raises:
            NoChatTemplateError: The model has none.
            ChatTemplateError: The template refused the conversation or broke on it.
            InvalidRequestError: A template argument with a reserved name; contradicting options.
            UnsupportedParameterError: Tools for a template that knows none.
        """
        if source is not None:
            template: _Template | None = self._of_request(source)
        else:
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
        if tools and template.needs_descriptions:
            tools = [
                {**tool, "function": {"description": "", **tool["function"]}} for tool in tools
            ]
        history = shaped(messages, template.rules)
        if tools and template.reads_tools_of_system:
            history, tools = _with_tools_in_system(history, tools), None
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
        return Rendered(text) if controls is None else controls.rendered(text, template.escapes)

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

    def _of_request(self, source: str) -> _Template:
        """A template that came with a request, examined as the model's own is."""
        with self._lock:
            found = self._of_requests.get(source)
        if found is not None:
            return found
        try:
            found = self._examine(source)
        except TokenizerLoadError:
            raise ChatTemplateError(
                "`chat_template` takes more time or memory than a conversation may, with a few"
                " words already.",
                param="chat_template",
            ) from None
        with self._lock:
            self._of_requests[source] = found
            while len(self._of_requests) > MAX_REQUEST_TEMPLATES:
                del self._of_requests[next(iter(self._of_requests))]
        return found

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
        max_compute_s: float | None = None,
    ) -> str:
        now = datetime.fromtimestamp(template_time, tz=UTC)
        times = {format_: now.strftime(format_) for format_ in template.time_formats}
        try:
            return RENDERER.render(
                template.source,
                messages,
                tools,
                {
                    **arguments,
                    **self._special_tokens,
                    "penstock_times": times,
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final_message,
                },
                is_ours=template.is_ours,
                max_compute_s=MAX_COMPUTE_S if max_compute_s is None else max_compute_s,
            )
        except TemplateCostError as error:
            raise _TemplateStoppedError(
                f"The chat template of {self._whose} {error}, and was stopped.", param="messages"
            ) from None
        except TemplateRefusedError as error:
            raise ChatTemplateError(
                f"The chat template of {self._whose} refused the messages: {error}",
                param="messages",
            ) from None

    def _examine(self, source: str) -> _Template:
        time_formats: tuple[str, ...] = ()
        if "strftime_now" in source:
            time_formats = tuple({match[2] for match in _TIME_FORMAT.finditer(source)})
        template = _Template(
            source=_TIME_MACRO + source if time_formats else source,
            time_formats=time_formats,
            knows_tools=False,
            needs_descriptions=False,
            reads_tools_of_system=False,
            escapes="ensure_ascii" in source,
            is_ours=RENDERER.is_ours(source),
            rules=HistoryRules(),
        )
        wants_null_content = _NULL_CONTENT.search(source) is not None

        def render(messages: list[JsonObject]) -> str | None:
            return self._try(template, messages)

        rules = probe_rules(
            render,
            developer="developer" in source,
            null_content=wants_null_content,
            argument_objects=not wants_argument_texts(render, null_content=wants_null_content),
            call_tags="<tool_call>" in source,
        )
        if "tools" in source:
            template = self._with_rules_of_tools(template)
        if template.knows_tools:
            # It may show them only where there are tools.
            seen = replace(rules, calls="shown", results=True)
            is_shown = shows_calls(lambda one: self._try(template, one, [_PROBE_TOOL]), seen)
            rules = seen if is_shown else replace(rules, results=True)
        tools = [_PROBE_TOOL] if template.knows_tools else None

        def render_with_tools(messages: list[JsonObject]) -> str | None:
            return self._try(template, messages, tools)

        rules = with_place_of_text(render_with_tools, rules)
        rules = replace(rules, breaks=line_breaks(render_with_tools, rules))
        return replace(template, rules=rules)

    def _with_rules_of_tools(self, template: _Template) -> _Template:
        """Whether tools make a difference to a short conversation, and what they need."""
        question = [{"role": "user", "content": "?"}]
        described = self._try(template, question, [_PROBE_TOOL])
        if described is not None and described == self._try(template, question):
            instructed = [_PROBE_INSTRUCTION, *question]
            in_system = _with_tools_in_system(instructed, [_PROBE_TOOL])
            shown = self._try(template, in_system)
            is_read = shown is not None and shown != self._try(template, instructed)
            return replace(template, knows_tools=is_read, reads_tools_of_system=is_read)
        return replace(
            template,
            knows_tools=True,
            needs_descriptions=described is not None
            and self._try(template, question, [_PROBE_TOOL_UNDESCRIBED]) is None,
        )

    def _try(
        self,
        template: _Template,
        messages: list[JsonObject],
        tools: list[JsonObject] | None = None,
    ) -> str | None:
        """The text of a short conversation; None when the template refuses it."""
        try:
            return self._render(
                template,
                messages,
                tools,
                {},
                0,
                add_generation_prompt=False,
                continue_final_message=False,
                max_compute_s=min(_EXAMINATION_COMPUTE_S, MAX_COMPUTE_S),
            )
        except _TemplateStoppedError as error:
            raise TokenizerLoadError(
                f"{error.message} A conversation of a few words was all that it was given: name a "
                "folder with another tokenizer and template by --tokenizer"
            ) from error
        except ChatTemplateError:
            return None


def _with_tools_in_system(messages: list[JsonObject], tools: list[JsonObject]) -> list[JsonObject]:
    """The messages with functions as JSON text in the first one, which is the system's."""
    written = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    first, *others = messages
    return [{**first, "tools": written}, *others]


def _check_arguments(arguments: JsonObject) -> JsonObject:
    for name in arguments:
        if name in _RESERVED_ARGUMENTS or name.startswith("_"):
            raise InvalidRequestError(
                f"'chat_template_kwargs.{name:.80}' is set by the server and can't be given.",
                param=f"chat_template_kwargs.{name:.80}",
            )
    return arguments
