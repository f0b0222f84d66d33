"""Reads a text in several cuts, with tools that have parameters of every type."""

import json
from typing import Any

from tests.fakes.parsed_text import REASONING, TOOLS, Parsed, parse
from toolparser_worker.machine.tool_schemas import ToolSchemas

PARAMETERS = {
    "type": "object",
    "properties": {
        "x": {"type": "string"},
        "n": {"type": "integer"},
        "l": {"type": "array"},
        "o": {"type": "object"},
        "d": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}
SCHEMAS = ToolSchemas(
    {"function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g", "get_weather")
)


def read(
    tool: str | None, text: str, reasoning: str | None = None, tools: ToolSchemas = SCHEMAS
) -> Parsed:
    """What is in a text, the same in whatever cut."""
    tool_format = TOOLS[tool] if tool else None
    reasoning_format = REASONING[reasoning] if reasoning else None
    whole = parse(text, tool_format, reasoning_format, tools=tools)
    for pieces in (list(text), [text[start : start + 3] for start in range(0, len(text), 3)]):
        other = parse(pieces, tool_format, reasoning_format, tools=tools)
        assert (other.content, other.reasoning, other.calls, other.num_malformed) == (
            whole.content,
            whole.reasoning,
            whole.calls,
            whole.num_malformed,
        )
    return whole


def values(parsed: Parsed) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in parsed.calls]
