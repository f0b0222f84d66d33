"""Why calls of tools that this server runs have no result, as their items show it."""

from typing import Any, Final

from gateway.http.openresponses.hosted import ApprovedCall, HostedTool

_INVALID_PARAMS: Final = -32602
"""Of JSON-RPC; MCP has it for unknown tools, too."""
_INTERNAL_ERROR: Final = -32603


def _protocol_error(message: str, code: int = _INTERNAL_ERROR) -> dict[str, Any]:
    return {"type": "mcp_protocol_error", "code": code, "message": message}


def wrong_call(tool: HostedTool) -> dict[str, Any]:
    """No server has the tool, or its arguments are no object."""
    why = "The arguments are no JSON object." if tool.is_listed else f"Unknown tool: {tool.name}"
    return _protocol_error(why, _INVALID_PARAMS)


def too_many_calls(max_calls: int) -> dict[str, Any]:
    """The response has made all calls that it may."""
    return _protocol_error(f"It was not run: {max_calls} calls of tools are made for a response.")


def interrupted_call() -> dict[str, Any]:
    """Whether it has done something is not known."""
    return _protocol_error("This server ended before the call did; it is not made again.")


def not_offered(call: ApprovedCall) -> dict[str, Any]:
    """It was approved, and its tool is gone."""
    return _protocol_error(
        f"The server {call.label} lists no tool {call.name} any more, or the label means another"
        " server by now."
    )
