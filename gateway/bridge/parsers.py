"""Messages to parser workers: sessions and their text."""

from collections.abc import Sequence

from msgspec import structs

from protocol.wire.messages import (
    CloseParse,
    Grammar,
    OpenParse,
    ParseBatch,
    ParseDelta,
    ToolChoiceMode,
)


def open_parse(
    request_id: str,
    *,
    num_choices: int = 1,
    tool_format: str | None,
    reasoning_format: str | None,
    tools_json: str | None,
    tool_choice: ToolChoiceMode = "auto",
    tool_name: str = "",
    parallel_tool_calls: bool = True,
    prompt_tail: str = "",
    thinking: bool | None = None,
    response_grammar: Grammar | None = None,
    trace_id: str = "",
    traceparent: str = "",
    answer_so_far: str = "",
) -> OpenParse:
    """A session for the text of one request; its attempt grows with each replay."""
    return OpenParse(
        request_id=request_id,
        attempt=1,
        num_choices=num_choices,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools_json=tools_json,
        tool_choice=tool_choice,
        tool_name=tool_name,
        parallel_tool_calls=parallel_tool_calls,
        prompt_tail=prompt_tail,
        thinking=thinking,
        response_grammar=response_grammar,
        trace_id=trace_id,
        traceparent=traceparent,
        answer_so_far=answer_so_far,
    )


def with_prompt_tail(opening: OpenParse, prompt_tail: str) -> OpenParse:
    """The same session for a prompt that ends so."""
    return structs.replace(opening, prompt_tail=prompt_tail)


def with_attempt(opening: OpenParse, attempt: int) -> OpenParse:
    """The same session at another parser, after earlier ones were lost."""
    return structs.replace(opening, attempt=attempt)


def parse_delta(
    request_id: str,
    choice: int,
    attempt: int,
    texts: Sequence[str],
    ends: Sequence[int],
    *,
    final: bool,
) -> ParseDelta:
    """New text of one choice for its parser."""
    return ParseDelta(
        request_id=request_id,
        choice=choice,
        attempt=attempt,
        text="".join(texts),
        token_ends=tuple(ends),
        final=final,
    )


def parse_batch(deltas: Sequence[ParseDelta]) -> ParseBatch:
    """All new text for one parser."""
    return ParseBatch(deltas=tuple(deltas))


def close_parse(request_id: str, attempt: int) -> CloseParse:
    """Forget a session."""
    return CloseParse(request_id=request_id, attempt=attempt)
