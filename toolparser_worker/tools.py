"""Checks the tools of a chat request as far as parsing depends on them."""

import json

from protocol.messages import ToolChoiceMode
from toolparser_worker.errors import InvalidToolsError


def validate_tools(tools_json: str | None, tool_choice: ToolChoiceMode, tool_name: str) -> int:
    """Checks that the tools are a list of functions with names.

    Args:
        tools_json: The `tools` of the chat schema as JSON text; None for none.
        tool_choice: As the client chose.
        tool_name: The tool when the choice is `named`.

    Returns:
        How many tools there are.

    Raises:
        InvalidToolsError: The text is no such list, or the named tool is not in it.
    """
    names = _names(tools_json)
    if tool_choice == "named" and tool_name not in names:
        raise InvalidToolsError(
            f"tool_choice names the tool {tool_name[:100]!r}, which is not among the tools.",
            param="tool_choice",
        )
    return len(names)


def _names(tools_json: str | None) -> list[str]:
    if tools_json is None:
        return []
    try:
        tools = json.loads(tools_json)
    except (ValueError, RecursionError) as error:
        raise InvalidToolsError(f"tools is not valid JSON: {error}.", param="tools") from error
    if not isinstance(tools, list):
        raise InvalidToolsError("tools must be a list.", param="tools")
    return [_name(tool, index) for index, tool in enumerate(tools)]


def _name(tool: object, index: int) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidToolsError(
            f"tools[{index}] must be a function with a name.", param=f"tools[{index}]"
        )
    return name
