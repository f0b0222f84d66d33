"""What a format can say about itself: the vocabulary of the declarations in `formats/`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class JsonObjectBody:
    """A call spelt as one JSON object, such as `{"name": "f", "arguments": {"x": 1}}`.

    Attributes:
        name_keys: Members that may hold the tool's name; the first one is used for rendering.
        argument_keys: Members that may hold the arguments; the first one is used for rendering.
        arguments_required: Without arguments it is no call. Otherwise they default to `{}`, and
            the name is certain as soon as it is read.
        other_keys: The members a call may have besides, until it is certain that it is one; None
            allows any. Formats without markers tell calls from plain JSON answers by it.
    """

    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments",)
    arguments_required: bool = False
    other_keys: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes tool calls.

    Attributes:
        name: The name that people and engines choose it by.
        body: What stands between the markers.
        aliases: Other names for the same format.
        starts: Markers that open a call, white space after them allowed.
        end: The marker that closes a call, white space before it allowed; it may be missing at
            the end of the text. Empty when the body's own end is the end.
        starts_bare: The body's `{` opens a call without any marker, outside reasoning.
        text_after_calls: Whether text after the first call is content or is dropped.
        rendered_start: What stands before the body when the format is written.
        rendered_end: What stands after the body when the format is written.
        rendered_separator: What stands between two calls when the format is written.
    """

    name: str
    body: JsonObjectBody
    aliases: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    end: str = ""
    starts_bare: bool = False
    text_after_calls: Literal["keep", "drop"] = "keep"
    rendered_start: str = ""
    rendered_end: str = ""
    rendered_separator: str = "\n"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the format needs to see although their tokens may be special."""
        return (*self.starts, self.end) if self.end else self.starts


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How one family of models writes its reasoning.

    Attributes:
        name: The name that people and engines choose it by.
        start: The marker before reasoning; only white space may stand before it.
        end: The marker after reasoning.
        aliases: Other names for the same format.
        opens: `always`: the text begins in reasoning, with or without the start marker, unless
            the prompt closed it. `marked`: it does only after a start marker, in the text or at
            the end of the prompt.
        interrupted_by: Texts that end the reasoning without its end marker; what follows,
            themselves included, is not reasoning.
        calls_end_it: A marked tool call inside the reasoning, once its name is out, is a call
            and ends the reasoning; what only resembles a call stays reasoning.
        drops_stray_ends: An end marker that comes again after the reasoning is no content.
    """

    name: str
    start: str
    end: str
    aliases: tuple[str, ...] = ()
    opens: Literal["always", "marked"] = "always"
    interrupted_by: tuple[str, ...] = ()
    calls_end_it: bool = False
    drops_stray_ends: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the format needs to see although their tokens may be special."""
        return (self.start, self.end)

    def opened_by(self, prompt_tail: str) -> bool:
        """Whether the prompt ends inside reasoning, so that the text begins in it."""
        return prompt_tail.rstrip().endswith(self.start)

    def closed_by(self, prompt_tail: str) -> bool:
        """Whether the prompt ends right after reasoning, so that the text has none."""
        return prompt_tail.rstrip().endswith(self.end)
