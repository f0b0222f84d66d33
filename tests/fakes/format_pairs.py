"""Which formats the laws are held to, alone and in pairs, and tools that calls fit."""

import json
from collections.abc import Sequence
from typing import Any

from tests.fakes.parsed_text import REASONING, TOOLS
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.tool_schemas import ToolSchemas

NATIVE = {"deepseek_v31": "deepseek_v3", "qwen3_coder": "qwen3", "openai": "openai_gptoss"}
"""The reasoning format of the same models, where it is called otherwise."""
PAIRS = sorted(
    {(tool, "none") for tool in TOOLS}
    | {(tool, NATIVE.get(tool, tool if tool in REASONING else "think")) for tool in TOOLS}
    | {("hermes", reasoning) for reasoning in REASONING}
    | {("none", reasoning) for reasoning in REASONING}
)
SOME_TOOLS = [name for name in TOOLS if name != "none"]
FEWER_PAIRS = [
    *((tool, "none") for tool in SOME_TOOLS),
    *(
        (next((tool for tool in SOME_TOOLS if NATIVE.get(tool, tool) == name), "hermes"), name)
        for name in REASONING
        if name != "none"
    ),
]
"""Each format once."""


def formats(tool: str, reasoning: str) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """The declarations of these names."""
    return TOOLS[tool], REASONING[reasoning]


def schema_of(value: Any) -> dict[str, Any]:
    """A JSON schema that the value has."""
    if isinstance(value, dict):
        members = {key: schema_of(item) for key, item in value.items()}
        return {"type": "object", "properties": members}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0]) if value else {}}
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return {"type": name}
    return {"type": "null"}


def schemas(wanted: Sequence[tuple[str, str]]) -> ToolSchemas:
    """Tools that the calls, names with arguments as JSON text, fit."""
    return ToolSchemas(
        {"function": {"name": name, "parameters": schema_of(json.loads(arguments))}}
        for name, arguments in wanted
    )
