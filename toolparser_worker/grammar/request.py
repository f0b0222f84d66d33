"""The grammar of one request: reasoning, then calls, the wanted content, or either."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.wire.messages import Grammar, ToolChoiceMode
from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.calls import CallableTool, CallRules
from toolparser_worker.grammar.lark import ANY_TEXT, FREE_OBJECT, LarkWriter, quoted, regex
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat

_NOTHING: Final[dict[str, Any]] = {"not": {}}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says about its output.

    Attributes:
        tools: As in the chat schema, checked; empty for none.
        tool_name: The tool of a named choice.
        parallel_tool_calls: Whether several calls may be made.
        prompt_tail: The end of the prompt, which may have opened or closed the reasoning.
        thinking: Whether the request switched reasoning on or off; None when it said nothing.
        response: What the content has to be.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoiceMode = "auto"
    tool_name: str = ""
    parallel_tool_calls: bool = True
    prompt_tail: str = ""
    thinking: bool | None = None
    response: Grammar | None = None


def request_grammar(
    tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None, wish: Wish
) -> Grammar | None:
    """The grammar that enforces what a request asks for; None when it asks for nothing.

    Args:
        tool_format: None when no tool may be called.
        reasoning_format: None when there is no reasoning to tell apart.
        wish: What is asked for.

    Raises:
        UnsupportedToolsError: A tool's calls can't be enforced in this format, or the wanted
            content is no JSON where it should be.
    """
    try:
        return _request_grammar(tool_format, reasoning_format, wish)
    except RecursionError as error:
        raise UnsupportedToolsError(
            "The schemas are nested too deep to be enforced.", param="tools"
        ) from error


def _request_grammar(
    tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None, wish: Wish
) -> Grammar | None:
    if tool_format is None or not wish.tools:
        return _content_grammar(reasoning_format, wish)
    is_forced = wish.tool_choice in ("required", "named")
    callable_tools = [
        CallableTool.of(tool, is_enforced=is_forced or bool(tool["function"].get("strict")))
        for tool in wish.tools
        if wish.tool_choice != "named" or tool["function"]["name"] == wish.tool_name
    ]
    is_one = wish.tool_choice == "named" or not wish.parallel_tool_calls
    writer = _writer(tool_format, reasoning_format)
    rules = CallRules(writer, tool_format)
    if is_forced or wish.response is not None:
        answer = rules.calls(callable_tools, is_one=is_one)
        if not is_forced and wish.response is not None:
            answer = f"({answer}) | {_content(writer, tool_format, wish.response)}"
        reasoning = _reasoning(writer, reasoning_format, tool_format, wish)
        return writer.grammar(writer.sequence(reasoning, writer.rule(answer)))
    if not any(tool["function"].get("strict") for tool in wish.tools):
        return None
    trigger = _trigger(tool_format, rules.beginning())
    if trigger == "[":
        # As the first character it begins a call; anywhere else it is text.
        other = writer.terminal(f"/[^\\[]/ {ANY_TEXT}")
        return writer.grammar(f"({rules.calls(callable_tools, is_one=is_one)}) | {other}?")
    calls = rules.calls(callable_tools, is_one=is_one, skipped=len(trigger))
    return writer.grammar(calls, after_marker=trigger)


def _content_grammar(reasoning_format: ReasoningFormat | None, wish: Wish) -> Grammar | None:
    if wish.response is None or reasoning_format is None:
        return wish.response
    writer = _writer(reasoning_format)
    reasoning = _reasoning(writer, reasoning_format, None, wish)
    content = writer.rule(_content(writer, reasoning_format, wish.response))
    if (reasoning, reasoning_format.framing) == ('""', None):
        return wish.response
    return writer.grammar(writer.sequence(reasoning, content))


def _writer(*formats: ToolFormat | ReasoningFormat | None) -> LarkWriter:
    return LarkWriter(marker for one in formats if one is not None for marker in one.markers)


def _trigger(tool_format: ToolFormat, beginning: str) -> str:
    """What shows that a call has begun: the format's marker, or else how its calls begin."""
    markers = [one for one in tool_format.markers if one.strip() and beginning.startswith(one)]
    if markers:
        return max(markers, key=len)
    return beginning.partition("<")[0] or beginning


def _reasoning(
    writer: LarkWriter,
    declared: ReasoningFormat | None,
    tool_format: ToolFormat | None,
    wish: Wish,
) -> str:
    """An expression for the reasoning before the answer, as far as format and prompt allow it."""
    if declared is None or declared.closed_by(wish.prompt_tail):
        return '""'
    end = declared.closing
    start = declared.rendered_start or next(iter(declared.starts), "")
    is_open = declared.opened_by(wish.prompt_tail)
    if not end or (declared.opens == "prompted" and not is_open):
        return '""'
    # What would end the reasoning by itself doesn't occur in it.
    interrupting = [one for one in (*declared.ends, *declared.interrupted_by) if end not in one]
    if tool_format is not None:
        interrupting += tool_format.wrapper_starts
        interrupting += (start for body in tool_format.bodies for start in body.starts)
    inside = writer.until(end, without=interrupting)
    if is_open:
        return inside
    marked = writer.rule(writer.sequence(writer.text(start), inside))
    begins = declared.begins(wish.prompt_tail, thinking=wish.thinking)
    if begins == "open" and declared.framing is None:
        return writer.rule(f"{marked} | {inside}")
    return f"{marked}?"


def _content(writer: LarkWriter, declared: ToolFormat | ReasoningFormat, response: Grammar) -> str:
    """An expression for the content that a client wants, in the message that the format needs."""
    opening = declared.framing.rendered_content if declared.framing is not None else ""
    return writer.sequence(writer.text(opening), _wanted(writer, response))


def _wanted(writer: LarkWriter, response: Grammar) -> str:
    match response.kind:
        case "json_object":
            return f"%json {FREE_OBJECT}"
        case "json_schema":
            schema = _loaded(response.source)
            if not isinstance(schema, dict | bool):
                raise UnsupportedToolsError("The wanted content's JSON schema is no object.")
            writer.is_strict = response.is_strict
            if isinstance(schema, dict):
                return writer.json_text(response.source)
            return writer.json({} if schema else _NOTHING)
        case "choice":
            return _alternatives(writer, _loaded(response.source))
        case "regex":
            return writer.terminal(regex(response.source))
        case _:
            return f"%lark {{\n{response.source}\n}}"


def _loaded(source: str) -> Any:
    try:
        return json.loads(source)
    except ValueError as error:
        raise UnsupportedToolsError(f"The wanted content is not valid JSON: {error}.") from error


def _alternatives(writer: LarkWriter, texts: Any) -> str:
    is_list = isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)
    if not is_list or not texts:
        raise UnsupportedToolsError("The wanted content is no list of texts that are not empty.")
    # One lexeme, of which there may be thousands; of rules not.
    return writer.terminal(" | ".join(map(quoted, dict.fromkeys(texts))))
