"""The tools that the scenarios for servers ask for, as far as registered tools can be such."""

from typing import Any


def fail() -> None:
    """Fails always."""
    raise RuntimeError("This tool intentionally returns an error for testing")


NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "test_simple_text",
        "description": "Answers with a text.",
        "parameters": NOTHING,
        "call": lambda: "This is a simple text response for testing.",
    },
    {
        "name": "test_error_handling",
        "description": "Fails always.",
        "parameters": NOTHING,
        "call": fail,
    },
    {
        "name": "test_x_mcp_header",
        "description": "An argument that travels in a header, too.",
        "parameters": {
            "type": "object",
            "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
            "required": ["region"],
        },
        "call": lambda region: region,
    },
    {
        "name": "json_schema_2020_12_tool",
        "description": "Tool with JSON Schema 2020-12 features",
        "parameters": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "$defs": {
                "address": {
                    "$anchor": "addressDef",
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                }
            },
            "properties": {
                "name": {"type": "string"},
                "address": {"$ref": "#/$defs/address"},
                "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                "phone": {"type": "string"},
                "email": {"type": "string"},
            },
            "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
            "if": {
                "properties": {"contactMethod": {"const": "phone"}},
                "required": ["contactMethod"],
            },
            "then": {"required": ["phone"]},
            "else": {"required": ["email"]},
            "additionalProperties": False,
        },
        "call": lambda **_arguments: "ok",
    },
]
