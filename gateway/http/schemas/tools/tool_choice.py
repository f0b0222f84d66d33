"""The `tool_choice` of a chat: whether tools may or must be called, and which.

https://platform.openai.com/docs/api-reference/chat/create
"""

from typing import Any, Final

from gateway.http.schemas.base.body import field_error
from gateway.http.schemas.base.ranges import MAX_TOOLS
from gateway.http.schemas.base.shapes import ByType, fields
from protocol.wire.messages import ToolChoiceMode

_NAMED = ("function", "custom")
CHOICE_SHAPE: Final = ByType(
    {
        "function": fields("type", function=fields("name")),
        "custom": fields("type", custom=fields("name")),
        "allowed_tools": fields("type", allowed_tools=fields("mode", "tools")),
    }
)
ToolChoice = str | dict[str, Any] | None


def checked_tool_choice(value: Any) -> Any:
    """The value itself, which the other functions of this file can read.

    Raises:
        PydanticCustomError: It is none of the kinds that are served.
    """
    if value in (None, "none", "auto", "required"):
        return value
    if not isinstance(value, dict):
        raise field_error("it must be `none`, `auto`, `required` or an object.")
    kind = value.get("type")
    if kind == "allowed_tools":
        _check_allowed(value.get("allowed_tools"))
    elif kind not in _NAMED:
        raise field_error(
            "it must be `function`, `custom` or `allowed_tools`.",
            ".type",
            unsupported=isinstance(kind, str),
        )
    elif _name_of(value) is None:
        raise field_error("must be the name of a tool.", f".{kind}.name")
    return value


def named_tool(choice: ToolChoice) -> str | None:
    """The one tool that must be called."""
    if not isinstance(choice, dict) or choice["type"] not in _NAMED:
        return None
    return _name_of(choice)


def allowed_tools(choice: ToolChoice) -> tuple[str, ...] | None:
    """The names of the tools that may be called; None for all."""
    if not isinstance(choice, dict) or choice["type"] != "allowed_tools":
        return None
    return tuple(str(_name_of(tool)) for tool in choice["allowed_tools"]["tools"])


def choice_mode(choice: ToolChoice) -> ToolChoiceMode:
    """How the parser worker is told, for a request with tools."""
    if named_tool(choice) is not None:
        return "named"
    mode = choice["allowed_tools"]["mode"] if isinstance(choice, dict) else choice
    return "required" if mode == "required" else "auto"


def _check_allowed(allowed: Any) -> None:
    if not isinstance(allowed, dict):
        raise field_error("must be an object.", ".allowed_tools")
    if allowed.get("mode") not in ("auto", "required"):
        raise field_error("it must be `auto` or `required`.", ".allowed_tools.mode")
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not 1 <= len(tools) <= MAX_TOOLS:
        raise field_error(f"must be a list of 1 to {MAX_TOOLS} tools.", ".allowed_tools.tools")
    for index, tool in enumerate(tools):
        where = f".allowed_tools.tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") not in _NAMED:
            raise field_error("must be a tool of type `function` or `custom`.", where)
        if _name_of(tool) is None:
            raise field_error("must be the name of a tool.", f"{where}.{tool['type']}.name")


def _name_of(tool: dict[str, Any]) -> str | None:
    part = tool.get(tool["type"])
    name = part.get("name") if isinstance(part, dict) else None
    return name if isinstance(name, str) else None
