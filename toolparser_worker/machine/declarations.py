"""What a format can say about itself: the vocabulary of the declarations in `formats/`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toolparser_worker.machine.blanks import BLANKS


def spaced(*parts: str) -> tuple[str, ...]:
    """A marker of several parts, with and without a blank between them.

    Args:
        parts: Of the marker, in order.

    Returns:
        The marker in all spellings, the one without blanks first.
    """
    found = [parts[0]]
    for part in parts[1:]:
        found = [f"{start}{blank}{part}" for blank in ("", " ") for start in found]
    return tuple(found)


def begins(marker: str, *following: str) -> tuple[str, ...]:
    """How a call begins for certain: its marker, with what then follows on the same or next line.

    Args:
        marker: What alone may be only talked of.
        following: Texts of which one follows it in a call.
    """
    return tuple(f"{marker}{blank}{text}" for text in following for blank in ("", "\n"))


_TOKEN = re.compile(r"<[^<> \t\n\r]+>|\[[^\[\] \t\n\r]+\]")


def special_texts(markers: Iterable[str]) -> tuple[str, ...]:
    """What markers may be made of: themselves, and what in them looks like a special token.

    Args:
        markers: Of a format; one of them may be several tokens, such as
            `<|action_start|><|plugin|>`.
    """
    found: dict[str, None] = {}
    for marker in markers:
        found[marker] = None
        found.update(dict.fromkeys(_TOKEN.findall(marker)))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBody:
    """How one call is spelt.

    Attributes:
        starts: Markers that open the call; empty when it begins with its own first character.
        end: The marker that closes it, white space before it allowed; it may be missing at the
            end of the text. Empty when the call's own end is the end.
        unknown_names: What a call of a tool is that is not among the request's tools: a call
            like others, plain text, or nothing at all but counted as malformed.
    """

    starts: tuple[str, ...] = ()
    end: str = ""
    unknown_names: Literal["call", "text", "dropped"] = "call"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see although their tokens may be special."""
        return (*self.starts, self.end) if self.end else self.starts


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonObjectBody(CallBody):
    """A call spelt as one JSON object, such as `{"name": "f", "arguments": {"x": 1}}`.

    Attributes:
        name_keys: Members that may hold the tool's name; the first one is used for rendering.
        argument_keys: Members that may hold the arguments, beside the usual ones (`arguments`,
            `parameters` and `args`); the first one is used for rendering.
        arguments_required: Without arguments it is no call. Otherwise they default to `{}`, and
            the name is certain as soon as it is read.
        other_keys: The members a call may have besides, until it is certain that it is one; None
            allows any. Formats without markers tell calls from plain JSON answers by it.
        name_is_key: The only member's key is the name and its value the arguments.
    """

    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments",)
    arguments_required: bool = False
    other_keys: tuple[str, ...] | None = None
    name_is_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderBody(CallBody):
    """A call spelt as a header with its name, then the arguments as plain JSON.

    Attributes:
        header_start: What stands before the name.
        header: What the name is in the text up to the first character that no name has, a regular
            expression with the group `name`.
        id_start: What stands between the name and an id that the model gives the call.
        separators: Texts between header and arguments, white space around them allowed.
        bare_arguments: The arguments' `{` may end the header without a separator.
        rendered_header: The header as it is written, with `{name}` and `{index}`.
        rendered_tail: What is written between the arguments and the end marker.
        tails: Texts that may stand between the arguments and the end marker.
    """

    header_start: str = ""
    header: str = r"(?P<name>.+)"
    id_start: str = ""
    separators: tuple[str, ...] = ()
    bare_arguments: bool = False
    rendered_header: str = "{name}"
    rendered_tail: str = ""
    tails: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see although their tokens may be special."""
        inner = (self.header_start, self.id_start, *self.separators, *self.tails, self.end)
        return (*self.starts, *(text for text in inner if text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBody(CallBody):
    """A call spelt as a tag with its name, then one element of plain text for each parameter.

    The values are text; the tool's JSON schema tells which of them are numbers, objects and so
    on. `end` belongs to the body: until it comes, the call goes on.

    Attributes:
        name_ends: Texts that end the name, or the tag that it stands in.
        parameters: Texts that open a parameter's key, or its tag; the first is used for rendering.
        name_attribute: The attribute of the call's tag that holds the name; when empty, the rest
            of the tag is the name, maybe in quotes.
        bare_name: The name stands alone, and the first parameter or the end may end it too.
        key_end: The text that ends the key or its tag.
        key_attribute: As `name_attribute`, for the parameter's tag.
        value_start: What stands between the end of the key and the value, if anything.
        value_end: The text after a value.
        other_value_ends: Other spellings of it.
        value_also_ends: Those of `also_ends` that no value has in it.
        other_ends: Other spellings of `end`.
        doubled_names: A name `x.x` that no tool has stands for the tool `x`.
        also_ends: Texts that end a call without its own end, and are no part of it.
        text_attribute: An attribute that says what the value is, so that no schema is needed.
        text_values: The values of that attribute that mean plain text.
        trims: What of the white space around a value is not part of it.
        undeclared: What a value is that the tool's schema says nothing about.
        reads_python: Values that the schema says nothing about may be spelt as Python spells
            them, as declared lists and objects may everywhere.
        drops_undeclared: Parameters are left out that the tool does not declare, if it does any.
        unwrapped: Keys of which a lone one that the schema lacks holds the whole arguments.
        unescapes: Pairs of a text in attributes and what it stands for, in this order.
        cdata: A value may be in `<![CDATA[…]]>`.
        rendered_name: What is written after the start marker, with `{name}` and `{index}`.
        rendered_key: What is written after the parameter's marker, with `{key}`, `{is_text}`
            (`true` or `false`) and `{type}` (the JSON type).
        rendered_space: What is written between name, parameters and end.
        rendered_trim: What is written around a value.
    """

    name_ends: tuple[str, ...]
    parameters: tuple[str, ...]
    key_end: str
    value_end: str
    name_attribute: str = ""
    bare_name: bool = False
    key_attribute: str = ""
    value_start: str = ""
    also_ends: tuple[str, ...] = ()
    other_value_ends: tuple[str, ...] = ()
    value_also_ends: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    doubled_names: bool = False
    text_attribute: str = ""
    text_values: tuple[str, ...] = ()
    trims: Literal["none", "newline", "space"] = "none"
    undeclared: Literal["text", "json"] = "text"
    reads_python: bool = False
    drops_undeclared: bool = False
    unwrapped: tuple[str, ...] = ()
    unescapes: tuple[tuple[str, str], ...] = ()
    cdata: bool = False
    rendered_name: str = '"{name}">'
    rendered_key: str = '"{key}">'
    rendered_space: str = ""
    rendered_trim: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see although their tokens may be special."""
        inner = (*self.name_ends, *self.parameters, self.key_end, self.value_start, self.value_end)
        ends = (*self.other_value_ends, self.end, *self.other_ends)
        return (*self.starts, *(text for text in inner if text.strip(BLANKS)), *ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementBody(CallBody):
    """A call spelt as a tree of elements whose tags are the parameters' names.

    Attributes:
        tag_prefix: What stands before each tag.
        name_attribute: The attribute of the call's tag that holds the name.
        item: The name of the elements that a list is made of.
        mixed_key: The member that text gets which stands beside elements.
    """

    tag_prefix: str
    name_attribute: str = "name"
    item: str = "item"
    mixed_key: str = "$text"


@dataclass(frozen=True, slots=True, kw_only=True)
class BracedBody(CallBody):
    """A call spelt as `call:name{key:value,…}` with quotes of its own.

    Attributes:
        quote: The text before and after a string.
        parses_strings: A quoted text that is JSON stands for that value.
        undeclared: What an unquoted argument is of a tool that is not known at all; where the
            tool is known, and within lists and objects, it is JSON.
    """

    quote: str
    parses_strings: bool = False
    undeclared: Literal["text", "json"] = "json"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader needs to see although their tokens may be special."""
        return (*self.starts, self.quote, *((self.end,) if self.end else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonBody(CallBody):
    """A call spelt as Python: `f(x=1, s='a')`, values being literals.

    Attributes:
        repairs: Quotes inside strings that are not escaped are told from the string's end by
            what follows them.
    """

    repairs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a message goes.

    Attributes:
        header: What its header looks like, a regular expression for the whole of it, with the
            group `name` where the header names the tool.
        to: `content`, `reasoning` or `dropped`; `calls` when calls stand in it and its other text
            is dropped; `call` when it is one call; `arguments` when it is the arguments of the
            call that the header names.
    """

    header: str
    to: Literal["content", "reasoning", "dropped", "calls", "call", "arguments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFraming:
    """How a format cuts the text into messages whose headers say what they are.

    Attributes:
        starts: Markers before a header.
        header_ends: Markers after a header; they count as part of it.
        ends: Markers after a message.
        routes: The first that fits says where a message goes; with none it is content.
        first_header: What the text begins with when it is in messages, the first start marker
            being in the prompt; with none it always is.
        bare_is_content: Text in the place of a header, without a header's end, is content
            without the markers around it; otherwise it is with them.
        rendered_content: What stands before content when the first message is written.
    """

    starts: tuple[str, ...]
    header_ends: tuple[str, ...]
    ends: tuple[str, ...]
    routes: tuple[Route, ...]
    first_header: tuple[str, ...] = ()
    bare_is_content: bool = False
    rendered_content: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the format needs to see although their tokens may be special."""
        return (*self.starts, *self.header_ends, *self.ends, *self.first_header)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one family of models writes tool calls.

    Attributes:
        name: The name that people and engines choose it by.
        body: How one call is spelt.
        other_body: Another spelling, tried where the first one's beginning is not there.
        aliases: Other names for the same format.
        wrapper_starts: Markers that open a block of calls.
        wrapper_ends: Markers that close such a block; with none, its calls or list do.
        wrapper_optional: Calls may also stand outside a block.
        listed: Whether the calls of a block stand in `[…]`, separated by commas.
        bare: Where calls may begin without any marker, outside reasoning: `first` is as the
            first thing of the answer.
        text_after_calls: Whether text after the first call is content or is dropped.
        trims: White space before a call is no content, even after other content.
        dropped_markers: Markers that are no content and mean nothing.
        dropped_spans: Pairs of texts that are no content, together with what is between them.
        opaque_spans: Pairs of texts between which calls are not looked for.
        framing: The messages that the text is made of, if it is.
        takes_suffix: A tokenizer may write its own suffix into every tag; it follows the name
            that the format is chosen by, `name:suffix`.
        id_style: How ids look: `call_…`, nine letters and digits, or `functions.name:index`.
        rendered_start: What stands before all calls when the format is written.
        rendered_end: What stands after all calls when the format is written.
        rendered_call_start: What stands before each call.
        rendered_call_end: What stands after each call.
        rendered_separator: What stands between two calls when the format is written.
    """

    name: str
    body: CallBody
    other_body: CallBody | None = None
    aliases: tuple[str, ...] = ()
    wrapper_starts: tuple[str, ...] = ()
    wrapper_ends: tuple[str, ...] = ()
    wrapper_optional: bool = False
    listed: Literal["never", "may", "must"] = "never"
    bare: Literal["never", "first", "anywhere"] = "never"
    text_after_calls: Literal["keep", "drop"] = "keep"
    trims: bool = False
    dropped_markers: tuple[str, ...] = ()
    dropped_spans: tuple[tuple[str, str], ...] = ()
    opaque_spans: tuple[tuple[str, str], ...] = ()
    framing: MessageFraming | None = None
    id_style: Literal["call", "nine", "indexed"] = "call"
    takes_suffix: bool = False
    rendered_start: str = ""
    rendered_end: str = ""
    rendered_call_start: str = ""
    rendered_call_end: str = ""
    rendered_separator: str = "\n"

    @property
    def bodies(self) -> tuple[CallBody, ...]:
        """The spellings of a call, the first one first."""
        return (self.body,) if self.other_body is None else (self.body, self.other_body)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the format needs to see although their tokens may be special."""
        found = [*self.wrapper_starts, *self.wrapper_ends, *self.dropped_markers]
        for body in self.bodies:
            found += body.markers
        for span in (*self.dropped_spans, *self.opaque_spans):
            found += span
        if self.framing is not None:
            found += self.framing.markers
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How one family of models writes its reasoning.

    Attributes:
        name: The name that people and engines choose it by.
        starts: Markers before reasoning; only white space may stand before the first.
        ends: Markers after reasoning.
        first_starts: Markers before reasoning that are such only as the first thing of all.
        aliases: Other names for the same format.
        takes_suffix: As in `ToolFormat`.
        opens: `always`: the text begins in reasoning, with or without a start marker, unless
            the prompt closed it. `marked`: it does only after a start marker, in the text or at
            the end of the prompt. `prompted`: only if the prompt opened it.
        interrupted_by: Texts that end the reasoning without its end marker; what follows,
            themselves included, is not reasoning. Markers of calls that are looked for are not
            among them, as `calls_end_it` says more.
        calls_end_it: A marked tool call inside the reasoning, once its name is out, is a call
            and ends the reasoning; what only resembles a call stays reasoning.
        drops_stray_ends: An end marker outside of reasoning is no content.
        reopens: A start marker anywhere opens reasoning.
        trims: Which white space around the reasoning is no part of it.
        dropped_markers: Markers in the answer that are no content and mean nothing.
        dropped_spans: Pairs of texts that are neither reasoning nor content, together with what
            is between them.
        framing: The messages that the text is made of, if it is.
        headers: In such formats, how messages of reasoning begin as models write it.
        content_prefix: What the content begins with although the model did not write it.
        rendered_start: What stands before the reasoning when it is written; the first start
            marker unless given.
        rendered_end: Likewise after it.
    """

    name: str
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    first_starts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    takes_suffix: bool = False
    opens: Literal["always", "marked", "prompted"] = "always"
    interrupted_by: tuple[str, ...] = ()
    calls_end_it: bool = False
    drops_stray_ends: bool = False
    reopens: bool = False
    trims: Literal["none", "end", "both"] = "none"
    dropped_markers: tuple[str, ...] = ()
    dropped_spans: tuple[tuple[str, str], ...] = ()
    framing: MessageFraming | None = None
    headers: tuple[str, ...] = ()
    content_prefix: str = ""
    rendered_start: str | None = None
    rendered_end: str | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the format needs to see although their tokens may be special."""
        found = [*self.starts, *self.ends, *self.dropped_markers, *self.interrupted_by]
        for span in self.dropped_spans:
            found += span
        if self.framing is not None:
            found += self.framing.markers
        return tuple(dict.fromkeys(found))

    @property
    def closing(self) -> str:
        """What is written to end the reasoning; empty where no marker does."""
        return self.rendered_end or min(self.ends, key=len, default="")

    def begins(self, prompt_tail: str, *, thinking: bool | None) -> Literal["no", "marked", "open"]:
        """Whether the text begins in reasoning, after a marker of it, or has none at all.

        Args:
            prompt_tail: The end of the prompt, which may have opened or closed it.
            thinking: Whether the request switched reasoning on or off; None when it said nothing.
                What the prompt's end shows counts more.
        """
        is_opened = self.opened_by(prompt_tail)
        is_missing = self.opens == "prompted" and not is_opened
        if not self.ends or self.closed_by(prompt_tail) or is_missing:
            return "no"
        if is_opened or (self.opens == "always" and thinking is not False):
            return "open"
        return "marked"

    def tail(self, prompt_tail: str, answer: str) -> str:
        """The end of a prompt, as far as it tells of reasoning.

        Args:
            prompt_tail: As it is.
            answer: What the prompt holds of an answer that goes on, if one does. Unless reasoning
                has begun in it, or right before it, and not ended, there is none any more.
        """
        answer = answer.strip(BLANKS)
        if not answer or not self.ends or self.framing is not None:
            return prompt_tail
        before = prompt_tail.rpartition(answer)[0]
        start = max((answer.rfind(one) for one in self.starts), default=-1)
        end = max(answer.rfind(one) for one in self.ends)
        has_begun = answer.startswith(self.starts) or self.opened_by(before)
        is_open = (has_begun and end < 0) or (self.reopens and start > end)
        return self.starts[0] if is_open else self.ends[0]

    def opened_by(self, prompt_tail: str) -> bool:
        """Whether the prompt ends inside reasoning, so that the text begins in it."""
        return _ends_with(prompt_tail, self.starts)

    def closed_by(self, prompt_tail: str) -> bool:
        """Whether the prompt ends right after reasoning, so that the text has none."""
        return _ends_with(prompt_tail, self.ends)


def _ends_with(prompt_tail: str, markers: tuple[str, ...]) -> bool:
    tail = prompt_tail.rstrip(BLANKS)
    return any(tail.endswith(marker.rstrip(BLANKS)) for marker in markers)
