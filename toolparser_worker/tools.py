"""The tools of the open requests: checked when they come, held once however many say the same."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from protocol.wire.messages import ToolChoiceMode
from toolparser_worker.errors import InvalidToolsError, TooManySessionsError
from toolparser_worker.machine.coercion import ExactFloat
from toolparser_worker.machine.tool_schemas import ToolSchemas
from toolparser_worker.schema_check import SchemaError, check_parameters

MAX_TOOLS_BYTES = 64 * 1024 * 1024
"""JSON text of different tools that may be held at once, in bytes."""


@dataclass(slots=True)
class Tools:
    """What one list of tools says.

    Attributes:
        names: Of the tools, in order.
        schemas: What reading their calls needs.
        num_bytes: Length of the JSON text.
        num_users: Open requests that have them.
    """

    key: bytes
    names: tuple[str, ...]
    schemas: ToolSchemas
    num_bytes: int
    num_users: int = 0


class ToolsTable:
    """All tools of the open requests.

    Args:
        max_bytes: JSON text of different tools that may be held at once; more is refused.
    """

    def __init__(self, max_bytes: int = MAX_TOOLS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._tools: dict[bytes, Tools] = {}

    def __len__(self) -> int:
        return len(self._tools)

    def acquire(self, tools_json: str | None) -> Tools:
        """The tools of a request that begins; `release` them when it ends.

        Args:
            tools_json: The `tools` of the chat schema as JSON text; None for none.

        Raises:
            InvalidToolsError: The text is no list of functions with names and schemas.
            TooManySessionsError: There is no room for more.
        """
        if tools_json is None:
            return Tools(b"", (), ToolSchemas(), 0)
        text = tools_json.encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(text, digest_size=16).digest()
        tools = self._tools.get(key)
        if tools is None:
            if self._num_bytes + len(text) > self._max_bytes:
                raise TooManySessionsError(
                    f"The tools of the open requests fill the parser's {self._max_bytes} bytes; "
                    "please try again later, or with fewer tools."
                )
            listed = _parse(tools_json)
            names = tuple(tool["function"]["name"] for tool in listed)
            tools = self._tools[key] = Tools(key, names, ToolSchemas(listed), len(text))
            self._num_bytes += len(text)
        tools.num_users += 1
        return tools

    def release(self, tools: Tools) -> None:
        """A request that had the tools has ended."""
        tools.num_users -= 1
        if tools.num_users == 0 and self._tools.pop(tools.key, None) is not None:
            self._num_bytes -= tools.num_bytes


def check_choice(tools: Tools, tool_choice: ToolChoiceMode, tool_name: str) -> None:
    """Checks that a tool which the choice names is there.

    Raises:
        InvalidToolsError: It is not.
    """
    if tool_choice == "named" and tool_name not in tools.names:
        raise InvalidToolsError(
            f"tool_choice names the tool {tool_name[:100]!r}, which is not among the tools.",
            param="tool_choice",
        )


def read_tools(tools_json: str) -> Any:
    """The value of a JSON text of tools, whose numbers keep their digits.

    Raises:
        ValueError: It is no JSON, or has an integer of more digits than Python reads.
        RecursionError: It nests too deep.
    """
    return json.loads(tools_json, parse_float=ExactFloat)


def _parse(tools_json: str) -> list[dict[str, Any]]:
    try:
        tools = read_tools(tools_json)
    except (ValueError, RecursionError) as error:
        raise InvalidToolsError(f"tools is not valid JSON: {error}.", param="tools") from error
    if not isinstance(tools, list):
        raise InvalidToolsError("tools must be a list.", param="tools")
    for index, tool in enumerate(tools):
        _check_tool(tool, f"tools[{index}]")
    return tools


def _check_tool(tool: object, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise InvalidToolsError(f"{where} must be a function with a name.", param=where)
    parameters = function.get("parameters")
    if parameters is None:
        return
    try:
        if not isinstance(parameters, dict):
            raise SchemaError((), "they must be an object")
        check_parameters(parameters)
    except SchemaError as error:
        raise InvalidToolsError(
            f"The parameters of the tool {name[:100]!r} are no valid JSON schema: {error}.",
            param=f"{where}.function.parameters",
        ) from error
