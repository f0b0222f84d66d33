"""What happens in a generation, as renderers see it: text, reasoning, tool calls, ends."""

from dataclasses import dataclass

from protocol.messages import Usage


@dataclass(slots=True)
class ContentText:
    """New visible text of a choice."""

    choice: int
    text: str


@dataclass(slots=True)
class ReasoningText:
    """New reasoning text of a choice."""

    choice: int
    text: str


@dataclass(slots=True)
class ToolCallStarted:
    """A choice calls a tool; `index` counts the calls of the choice."""

    choice: int
    index: int
    id: str
    name: str


@dataclass(slots=True)
class ToolCallArguments:
    """More of a call's arguments, JSON text."""

    choice: int
    index: int
    text: str


@dataclass(slots=True)
class ChoiceFinished:
    """The end of a choice; `finish_reason` in OpenAI's words."""

    choice: int
    finish_reason: str
    usage: Usage
    stop_reason: str | int | None = None


GenerationEvent = ContentText | ReasoningText | ToolCallStarted | ToolCallArguments | ChoiceFinished


def total_usage(usages: list[Usage], num_choices: int) -> Usage:
    """The usage of a request from those of its choices.

    Args:
        usages: One a choice; choices of one prompt stand together.
        num_choices: Choices a prompt (`n`); a prompt is counted once, as OpenAI does.
    """
    firsts = usages[::num_choices]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
