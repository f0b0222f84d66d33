"""Messages between gateway and parser worker: model text in, content, reasoning, calls out."""

from typing import Literal

from protocol.wire.messages.base import Message, Part
from protocol.wire.messages.generation import Grammar, Thought

ToolChoiceMode = Literal["none", "auto", "required", "named"]


class OpenParse(Message, frozen=True, tag="open_parse"):
    """Begin parsing the choices of one request.

    Attributes:
        tool_format: Format name; None leaves tool markup in the content.
        reasoning_format: Format name; None leaves reasoning markup in the content.
        tools_json: The tools of the chat schema as JSON text. Without any, an empty list, calls
            are not looked for; with None, any name is a tool's.
        tool_choice: As the client chose.
        tool_name: The tool when `tool_choice` is `named`.
        prompt_tail: The end of the rendered prompt: whether reasoning was already opened there.
        answer_so_far: Where the output goes on with an answer that the prompt ends with, what
            there is of it (since 1.5): it says instead whether reasoning is open.
        thinking: Whether the request switched reasoning on or off; None when it said nothing.
        num_choices: Choices 0 ≤ i < num_choices will send text.
        response_grammar: What the client wants the content to be; the parser joins it with the
            format's reasoning markers.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs (W3C; since 1.5); empty when it isn't traced.
    """

    request_id: str
    attempt: int
    num_choices: int = 1
    tool_format: str | None = None
    reasoning_format: str | None = None
    tools_json: str | None = None
    tool_choice: ToolChoiceMode = "auto"
    tool_name: str = ""
    parallel_tool_calls: bool = True
    prompt_tail: str = ""
    thinking: bool | None = None
    response_grammar: Grammar | None = None
    trace_id: str = ""
    traceparent: str = ""
    answer_so_far: str = ""


class ParseOpened(Message, frozen=True, tag="parse_opened"):
    """The parser is ready for text.

    Attributes:
        keep_special_tokens: Texts that must stay in the output although their tokens are special.
        grammar: A constraint that enforces the tool choice, when the choice asks for one.
        thought: How the reasoning can be ended; None where the format has no marker that does
            (since 1.5).
    """

    request_id: str
    attempt: int
    keep_special_tokens: tuple[str, ...] = ()
    grammar: Grammar | None = None
    thought: Thought | None = None


class ParseDelta(Part, frozen=True):
    """New text of one choice.

    Attributes:
        token_ends: As in `Delta`: character offsets in the choice's whole text at which tokens end.
        final: No more text will follow for this choice; flush.
    """

    request_id: str
    choice: int
    attempt: int
    text: str = ""
    token_ends: tuple[int, ...] = ()
    final: bool = False


class ParseBatch(Message, frozen=True, tag="parse_batch"):
    """All deltas of one engine step that need parsing at this worker."""

    deltas: tuple[ParseDelta, ...]


class CloseParse(Message, frozen=True, tag="close_parse"):
    """Forget the request; idempotent, unanswered."""

    request_id: str
    attempt: int


class ParseEvent(Part, frozen=True):
    """One thing that was found.

    Attributes:
        kind: `content` and `reasoning` carry `text`; `tool_call_start` carries `index`, `id`,
            `name`; `tool_call_arguments` carries `index` and `text`; `tool_call_end` `index`.
        start: Character offset in the choice's whole text where its source begins.
        end: Character offset after its source; start = end for events without source text.
    """

    kind: Literal["content", "reasoning", "tool_call_start", "tool_call_arguments", "tool_call_end"]
    text: str = ""
    index: int = 0
    id: str = ""
    name: str = ""
    start: int = 0
    end: int = 0


class ParsedDelta(Part, frozen=True):
    """What one ParseDelta yielded, in order; every ParseDelta is answered by one.

    Attributes:
        num_reasoning_tokens: So far, for the usage.
        num_malformed: Calls so far that broke the format after their name was out.
        final: Echo of the delta's `final`.
    """

    request_id: str
    choice: int
    attempt: int
    events: tuple[ParseEvent, ...] = ()
    num_reasoning_tokens: int = 0
    num_malformed: int = 0
    final: bool = False


class ParsedBatch(Message, frozen=True, tag="parsed_batch"):
    """The answer to a ParseBatch, entry by entry."""

    deltas: tuple[ParsedDelta, ...]
