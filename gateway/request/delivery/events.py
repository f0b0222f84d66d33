"""What happens in a generation, as renderers see it: text, reasoning, tool calls, ends."""

from msgspec import Struct

from protocol.wire.messages import Prepared, TokenLogprobs, Usage


class PromptReport(Struct):
    """What an answer tells of one prompt.

    Attributes:
        prepared: The prompt.
        logprobs: Of its tokens from the second on, as far as they were asked for.
    """

    prepared: Prepared
    logprobs: tuple[TokenLogprobs, ...] = ()


class PromptShown(Struct):
    """A choice's prompt, before anything else of the choice, where the answer tells of prompts."""

    choice: int
    prompt: PromptReport


class ContentText(Struct):
    """New visible text of a choice.

    Attributes:
        logprobs: Of the tokens that made it, when asked for; also tokens without visible text.
        token_ends: For each of `logprobs`, the length of the whole text with it; only of text
            that no parser has been through.
        token_ids: New output tokens, whatever text they made, when asked for.
    """

    choice: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    token_ends: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


class ReasoningText(Struct):
    """New reasoning text of a choice."""

    choice: int
    text: str


class ToolCallStarted(Struct):
    """A choice calls a tool; `index` counts the calls of the choice."""

    choice: int
    index: int
    id: str
    name: str


class ToolCallArguments(Struct):
    """More of a call's arguments, JSON text."""

    choice: int
    index: int
    text: str


class ChoiceFinished(Struct):
    """The end of a choice; `finish_reason` in OpenAI's words.

    Attributes:
        is_call_cut: The last call of a tool has no end; others before it may be whole.
    """

    choice: int
    finish_reason: str
    usage: Usage
    stop_reason: str | int | None = None
    is_call_cut: bool = False

    def as_length(self) -> "ChoiceFinished":
        """The same end, because there was no room for more."""
        return ChoiceFinished(self.choice, "length", self.usage, self.stop_reason, self.is_call_cut)


class UsageTold(Struct):
    """What the request has used until now, before each event of a stream that tells it."""

    choice: int
    usage: Usage


GenerationEvent = (
    PromptShown
    | UsageTold
    | ContentText
    | ReasoningText
    | ToolCallStarted
    | ToolCallArguments
    | ChoiceFinished
)


def total_usage(usages: list[Usage], num_choices: int) -> Usage:
    """The usage of a request from those of its choices.

    Args:
        usages: One a choice; choices of one prompt stand together.
        num_choices: Choices a prompt (`n`); a prompt is counted once, as OpenAI does.
    """
    if len(usages) == 1:
        return usages[0]
    # The choice that computed the prompt found least of it; the others found what it computed.
    prompts = [usages[start : start + num_choices] for start in range(0, len(usages), num_choices)]
    # The first may have found no engine yet when the request ends.
    num_prompt = [
        next((usage.prompt_tokens for usage in prompt if usage.prompt_tokens), 0)
        for prompt in prompts
    ]
    num_cached = [
        min((usage.cached_tokens for usage in prompt if usage.prompt_tokens), default=0)
        for prompt in prompts
    ]
    return Usage(
        prompt_tokens=sum(num_prompt),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(num_cached),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )


def usage_of_all(usages: list[Usage]) -> Usage:
    """What several requests have used together."""
    return Usage(
        prompt_tokens=sum(one.prompt_tokens for one in usages),
        completion_tokens=sum(one.completion_tokens for one in usages),
        cached_tokens=sum(one.cached_tokens for one in usages),
        reasoning_tokens=sum(one.reasoning_tokens for one in usages),
    )
