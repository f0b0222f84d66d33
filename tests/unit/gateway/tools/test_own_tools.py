"""This server's registered tools, as responses call them."""

from typing import Any

from gateway.tools.tool_servers import CALL_TOOL, _OwnRunner
from gateway.tools.toolbox import ToolResult


class Box:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        self.given.append((name, arguments_json))
        return ToolResult("done")


async def test_a_registered_tool_gets_every_digit() -> None:
    box: Any = Box()
    arguments = '{"id":12345678901234567890123}'
    asked = f'{{"name":"f","arguments":{arguments}}}'
    result = await _OwnRunner(box, 100).execute(CALL_TOOL, asked)
    assert box.given == [("f", arguments)]
    assert result.result == {"output": "done"}
