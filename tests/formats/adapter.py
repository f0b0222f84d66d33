"""Adapts the parser to runners of sample cases: text in, plain tuples out."""

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.wire.messages import ParseEvent
from toolparser_worker.formats import find_reasoning_format, find_tool_format
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.declarations import ReasoningFormat
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.tool_schemas import ToolSchemas

_NO_EFFORT = ("none", "no_think")
_SWITCHES = ("thinking", "enable_thinking")
Event = tuple[Any, ...]


class Adapter:
    """One text's machine, whose events are tuples.

    Args:
        machine: Parses the text.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def feed(self, text: str) -> list[Event]:
        """Takes more text."""
        return [found for event in self.machine.feed(text) if (found := _plain(event))]

    def finish(self) -> list[Event]:
        """No more text will come."""
        return [found for event in self.machine.finish() if (found := _plain(event))]


def create(
    name: str,
    tools: Sequence[Mapping[str, Any]] | None,
    *,
    kind: str = "tool",
    reasoning: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Adapter:
    """The parser of a sample case.

    Args:
        name: Tool format; the reasoning format when `kind` is `reasoning`.
        tools: The tools of the request.
        kind: `tool`, `reasoning` or `combined`.
        reasoning: The reasoning format of a combined case.
        options: What the request asked its chat template for; it shows at the prompt's end.
    """
    reasoning_name = name if kind == "reasoning" else reasoning if kind == "combined" else None
    tool_format = None if kind == "reasoning" else find_tool_format(name)
    reasoning_format = find_reasoning_format(reasoning_name)
    style = tool_format.id_style if tool_format is not None else "call"
    return Adapter(
        Machine(
            tool_format=tool_format,
            reasoning_format=reasoning_format,
            prompt_tail=prompt_tail(reasoning_format, options or {}),
            call_id=lambda index, called: call_id("case", 0, index, name=called, style=style),
            tools=ToolSchemas(tools or ()),
        )
    )


def prompt_tail(reasoning: ReasoningFormat | None, options: Mapping[str, Any]) -> str:
    """What a chat template leaves at the end of the prompt when reasoning is switched."""
    if reasoning is None or not reasoning.ends:
        return ""
    template = options.get("chat_template_kwargs") or {}
    switches = [template[name] for name in _SWITCHES if name in template]
    if template.get("thinking_mode") == "enabled":
        switches.append(True)
    if options.get("reasoning_effort"):
        switches.append(options["reasoning_effort"] not in _NO_EFFORT)
    if not switches:
        return ""
    return reasoning.starts[0] if switches[0] else reasoning.ends[0]


def _plain(event: ParseEvent) -> Event | None:
    match event.kind:
        case "content" | "reasoning":
            return (event.kind, event.text)
        case "tool_call_start":
            return ("tool_start", event.index, event.id, event.name)
        case "tool_call_arguments":
            return ("tool_args", event.index, event.text)
    return None
