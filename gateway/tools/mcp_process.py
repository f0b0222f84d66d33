"""Asks MCP servers for the gateway, one question at a time: `python -m gateway.tools.mcp_process`.

It speaks to the gateway as `tool_process` does, with two tools of its own. What a server does wrong
is a result, bounded in size; the client's credentials are in the question, and nowhere else.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.tools.mcp_client import McpClient, mirrored_parameters
from gateway.tools.mcp_http import McpError, Server
from gateway.tools.tool_process import RegisteredTool, as_line, check_readable, serve

MAX_TOOLS: Final = 128
"""Of one server, after `allowed_tools`; more is an error that says so."""
MAX_NAME_CHARACTERS: Final = 128
MAX_DESCRIPTION_CHARACTERS: Final = 8192
MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_SCHEMA_DEPTH: Final = 64
_ANNOTATIONS: Final = ("title", *(f"{one}Hint" for one in ("readOnly", "destructive")))
_SECRET_CHARACTERS: Final = 8
"""Shorter values of headers are no secrets, and would be found in many texts."""


def list_tools(
    server: Mapping[str, Any], names: list[str] | None = None, only_reading: bool = False
) -> dict[str, Any]:
    """The tools of a server that are wanted: `tools`, or `error`.

    Args:
        server: Fields of `Server`.
        names: Of tools; None is all.
        only_reading: Leaves out what doesn't say that it changes nothing.
    """
    try:
        described = _with_client(server, lambda client: client.list_tools())
        tools = wanted_tools(described, names, only_reading=only_reading)
        if len(tools) > MAX_TOOLS:
            raise McpError(
                f"the server lists {len(tools)} tools, and {MAX_TOOLS} are accepted; name those"
                " you need in `allowed_tools`"
            )
        found: dict[str, Any] = {"tools": tools}
    except McpError as error:
        found = {"error": error.as_json()}
    return _cleaned_result(found, server)


def call_tool(
    server: Mapping[str, Any],
    name: str,
    arguments: Mapping[str, Any],
    schema: Mapping[str, Any],
    max_bytes: int,
) -> dict[str, Any]:
    """What a tool answers: `output`, a text, or `error`.

    Args:
        server: Fields of `Server`.
        name: Of the tool.
        arguments: By name.
        schema: Of the arguments, as the server listed it.
        max_bytes: Longer answers are errors.
    """
    try:
        result = _with_client(server, lambda client: client.call_tool(name, arguments, schema))
        found = told_result(result, max_bytes)
    except McpError as error:
        found = {"error": error.as_json()}
    return _cleaned_result(found, server)


def _with_client(server: Mapping[str, Any], ask: Any) -> Any:
    client = McpClient(Server(**server))
    client.open()
    try:
        return ask(client)
    except ValueError as error:
        raise McpError(f"the tool's schema is wrong ({error})") from error
    finally:
        client.close()


def wanted_tools(
    described: Iterable[Any], names: list[str] | None, *, only_reading: bool
) -> list[dict[str, Any]]:
    """The tools that are wanted and well described, in the server's order, as items show them.

    A tool with a wrong description is left out, so that it doesn't cost the others.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in described:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str) or name in found or (names is not None and name not in names):
            continue
        schema, said = one.get("inputSchema"), one.get("annotations")
        annotations = {
            key: said[key]
            for key in _ANNOTATIONS
            if isinstance(said, dict) and isinstance(said.get(key), str | bool)
        }
        if only_reading and annotations.get("readOnlyHint") is not True:
            continue
        if not (0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable() and _is_good(schema)):
            continue
        text = one.get("description")
        found[name] = {
            "name": name,
            "description": text[:MAX_DESCRIPTION_CHARACTERS] if isinstance(text, str) else "",
            "input_schema": schema,
            "annotations": annotations or None,
        }
    return list(found.values())


def _is_good(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    depth = 0
    level: list[Any] = [schema]
    while level:
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            return False
        parts = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for part in parts for one in part if isinstance(one, dict | list)]
    try:
        mirrored_parameters(schema)
        check_readable(schema)
    except ValueError:
        return False
    return len(as_line(schema)) <= MAX_SCHEMA_BYTES


def told_result(result: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    """A result of `tools/call` as a text, or as the error that it is.

    Raises:
        McpError: It is wrong, or too long.
    """
    content = result.get("content", [])
    if not isinstance(content, list):
        raise McpError("the tool's content is no list")
    text = "\n".join(_told_part(part) for part in content)
    if not content and "structuredContent" in result:
        text = json.dumps(result["structuredContent"], ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise McpError(
            f"the tool's answer has more than {max_bytes} bytes (PENSTOCK_MAX_TOOL_OUTPUT_BYTES)"
        )
    if result.get("isError") is True:
        part = {"type": "text", "text": text}
        return {"error": {"type": "mcp_tool_execution_error", "content": [part]}}
    return {"output": text}


def _told_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "resource_link" and isinstance(part.get("uri"), str):
        return str(part["uri"])
    resource = part.get("resource") if kind == "resource" else None
    if isinstance(resource, dict) and isinstance(resource.get("text"), str):
        return str(resource["text"])
    if kind in ("image", "audio", "resource"):
        return f"[{kind} left out: models here read text]"
    raise McpError("a part of the tool's content is none that MCP knows")


def _cleaned_result(found: dict[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
    """The same as texts that JSON can hold, without secrets of the client that a server echoes."""
    values: Mapping[str, str] = server.get("headers", {})
    secrets = {part for value in values.values() for part in (value, *value.split())}
    hidden = [one for one in sorted(secrets, key=len)[::-1] if len(one) >= _SECRET_CHARACTERS]
    cleaned: dict[str, Any] = _cleaned(found, hidden)
    return cleaned


def _cleaned(value: Any, hidden: list[str]) -> Any:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        for secret in hidden:
            value = value.replace(secret, "***")
        return value
    if isinstance(value, dict):
        return {_cleaned(key, hidden): _cleaned(one, hidden) for key, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one, hidden) for one in value]
    return value


TOOLS: Final = {
    "list_tools": RegisteredTool("list_tools", "", {"type": "object"}, list_tools),
    "call_tool": RegisteredTool("call_tool", "", {"type": "object"}, call_tool),
}


def main() -> int:
    """Serves questions until the gateway closes the pipe."""
    return serve(lambda: TOOLS)


if __name__ == "__main__":
    sys.exit(main())
