"""Our client of MCP, as the conformance suite drives one: `python -m … URL`.

It does what a response with tools does, with the functions that the tools' child process has: lists
the tools of the server and calls them. The suite names the calls that it wants in
`MCP_CONFORMANCE_CONTEXT`; without any, each tool is called with plain arguments.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.tools.mcp_process import call_tool, list_tools

_MAX_OUTPUT_BYTES: Final = 65536
_PLAIN: Final[Mapping[str, Any]] = {
    "string": "text",
    "integer": 2,
    "number": 2,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


def plain_arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each required argument."""
    properties = schema.get("properties", {})
    return {
        name: _PLAIN.get(properties.get(name, {}).get("type"), "text")
        for name in schema.get("required", ())
    }


def main(arguments: Sequence[str]) -> int:
    """List the tools of a server, and call them; 1 where that can't be done."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    server = {"url": arguments[-1], "listed": [arguments[-1]]}
    found = list_tools(server)
    print(json.dumps(found))
    if "error" in found:
        return 1
    schemas = {tool["name"]: tool["input_schema"] for tool in found["tools"]}
    calls = context.get("toolCalls") or [
        {"name": name, "arguments": plain_arguments(schema)} for name, schema in schemas.items()
    ]
    if "json_schema_echo" in schemas:
        seen = schemas["json_schema_2020_12_tool"]
        calls = [{"name": "json_schema_echo", "arguments": {"schema": seen}}]
    for call in calls:
        if call["name"] not in schemas:
            print(f"{call['name']} is not listed")
            continue
        answer = call_tool(
            server, call["name"], call["arguments"], schemas[call["name"]], _MAX_OUTPUT_BYTES
        )
        print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
