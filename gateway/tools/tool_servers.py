"""The servers whose tools a response may use: MCP servers that are listed, and this one's own."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from gateway.config import OWN_TOOLS_LABEL, GatewaySettings
from gateway.errors import InvalidRequestError, ToolNotFoundError
from gateway.json_numbers import loads
from gateway.tools.toolbox import CallTurns, ToolBox, ToolResult
from protocol.runtime.child_environment import child_environment

_MCP_COMMAND: Final = (sys.executable, "-m", "gateway.tools.mcp_process")
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
LIST_TOOLS: Final = "list_tools"
CALL_TOOL: Final = "call_tool"


class ToolRunner(Protocol):
    """Runs a tool; what goes wrong within it is a result."""

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        """Run a tool.

        Args:
            name: Of the tool.
            arguments_json: A JSON object without line breaks.
            caller: Whose turn it is.

        Raises:
            GatewayError: It was not begun.
        """
        ...


@dataclass(frozen=True, slots=True)
class NamedServer:
    """A server as a request names it.

    Attributes:
        label: As it stands in items.
        url: Empty for one that is named by its label alone.
        headers_json: What the client gives for this server alone, a JSON object; a secret.
        names: Of the tools that may be used; None for all.
        only_reading: Only tools that say that they change nothing.
    """

    label: str
    url: str = ""
    headers_json: str = "{}"
    names: tuple[str, ...] | None = None
    only_reading: bool = False

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"NamedServer({self.label!r})"

    @property
    def limits(self) -> str:
        """Stands for the tools that may be used, in the ids of items: 8 hex digits."""
        names = None if self.names is None else sorted(set(self.names))
        return hashlib.sha256(orjson.dumps([names, self.only_reading])).hexdigest()[:8]


ALL_TOOLS: Final = NamedServer("").limits
"""Of a request that limits no tools: what is listed for it has what any other one may use."""


@dataclass(frozen=True, slots=True)
class ServerTools:
    """The tools of one server, as a response uses them.

    Attributes:
        runner: Answers `list_tools` with `{tools}` or `{error}`, `call_tool` with `{output}` or
            `{error}`, in the words of OpenAI's items.
        named: As the request names it.
        server: What the runner has to know of it.
    """

    runner: ToolRunner
    named: NamedServer
    server: Mapping[str, Any]

    @property
    def mark(self) -> str:
        """Stands for its URL, which may hold a secret, in the ids of items: 16 hex digits."""
        return hashlib.sha256(str(self.server.get("url", "")).encode()).hexdigest()[:16]

    @property
    def list_mark(self) -> str:
        """What ends the id of the item that lists the tools: which may be used, and whose."""
        return f"{self.named.limits}_{self.mark}"

    def listing(self) -> str:
        """The arguments of `list_tools`."""
        names = None if self.named.names is None else list(self.named.names)
        return _json(server=self.server, names=names, only_reading=self.named.only_reading)

    def call(self, name: str, arguments: Mapping[str, Any], schema_json: str) -> str:
        """The arguments of `call_tool`."""
        schema = orjson.Fragment(schema_json.encode())
        return _json(server=self.server, name=name, arguments=arguments, schema=schema)


class ToolServers:
    """All servers whose tools responses may use.

    Args:
        urls: The listed MCP servers by their labels.
        networks: Internal networks that their names may lead to.
        mcp: Asks them; None where none is listed.
        own: The tools that packages register; None where there are none.
        max_output_bytes: Of one answer.
        max_calls: Questions to MCP servers under way at a time.
    """

    def __init__(
        self,
        *,
        urls: Mapping[str, str],
        networks: tuple[str, ...],
        mcp: ToolBox | None,
        own: ToolBox | None,
        max_output_bytes: int,
        max_calls: int,
    ) -> None:
        self._urls = dict(urls)
        self._networks = networks
        self._box = mcp
        # One that hangs leaves a place to the others.
        most = max(1, max_calls - 1) if len(set(urls.values())) > 1 else max_calls
        self._mcp = {
            url: _McpRunner(mcp, max_output_bytes, most) for url in urls.values() if mcp is not None
        }
        self._own = None if own is None else _OwnRunner(own, max_output_bytes)

    def find(self, named: NamedServer, param: str) -> ServerTools:
        """The server that a request names.

        Raises:
            InvalidRequestError: It is none that may be used.
        """
        if named.label == OWN_TOOLS_LABEL and not named.url and self._own is not None:
            return ServerTools(self._own, named, {})
        url = named.url or self._urls.get(named.label, "")
        if url not in self._mcp:
            labels = [*self._urls, *([] if self._own is None else [OWN_TOOLS_LABEL])]
            known = f"known are {', '.join(labels)}" if labels else "it lists none"
            field = "server_url" if named.url else "server_label"
            raise InvalidRequestError(
                f"Invalid `{param}.{field}`: this server connects only to the MCP servers that"
                f" PENSTOCK_MCP_SERVERS lists; {known}.",
                param=f"{param}.{field}",
            )
        server = {
            "url": url,
            "headers": orjson.Fragment(named.headers_json.encode()),
            "listed": list(self._urls.values()),
            "networks": list(self._networks),
        }
        return ServerTools(self._mcp[url], named, server)

    async def close(self) -> None:
        """End all processes that ask servers; those of registered tools are another's."""
        if self._box is not None:
            await self._box.close()


class _McpRunner:
    """Asks one MCP server, each question in a process of its own.

    Args:
        box: The processes, for the questions to all servers.
        max_output_bytes: Of one answer.
        max_calls: Questions to this server under way at a time; others wait apart from those to
            other servers.
    """

    def __init__(self, box: ToolBox, max_output_bytes: int, max_calls: int) -> None:
        self._box = box
        self._max_output_bytes = max_output_bytes
        self._turns = CallTurns(max_calls, max_calls)

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        """List tools or call one.

        Raises:
            GatewayError: Too many questions wait, or no process can be started.
        """
        if name == CALL_TOOL:
            arguments_json = f'{arguments_json[:-1]},"max_bytes":{self._max_output_bytes}}}'
        async with self._turns.turn(caller):
            result = await self._box.execute(name, arguments_json, caller)
        if result.error is None:
            return result
        is_late = result.error["type"] == "timeout"
        message = (
            "The MCP server did not answer in time (PENSTOCK_TOOL_TIMEOUT_S)."
            if is_late
            else "The MCP server could not be asked."
        )
        error = {"type": "http_error", "code": 504 if is_late else 500, "message": message}
        return ToolResult({"error": error})


class _OwnRunner:
    """Runs the registered tools, in the words of MCP."""

    def __init__(self, box: ToolBox, max_output_bytes: int) -> None:
        self._box = box
        self._max_output_bytes = max_output_bytes

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        """List tools or call one."""
        asked = loads(arguments_json)
        if name == LIST_TOOLS:
            return ToolResult({"tools": await self._listed(asked, caller)})
        try:
            result = await self._box.execute(
                asked["name"], orjson.dumps(asked["arguments"]).decode(), caller
            )
        except (ToolNotFoundError, InvalidRequestError) as error:
            wrong = {"type": "mcp_protocol_error", "code": -32602, "message": error.message}
            return ToolResult({"error": wrong})
        if result.error is not None:
            said = f"{result.error['type']}: {result.error['message']}"
            part = {"type": "text", "text": said[: self._max_output_bytes]}
            failed = {"type": "mcp_tool_execution_error", "content": [part]}
            return ToolResult({"error": failed})
        value = result.result
        output = value if isinstance(value, str) else orjson.dumps(value).decode()
        if len(output.encode("utf-8", "surrogatepass")) > self._max_output_bytes:
            message = (
                f"The tool's answer has more than {self._max_output_bytes} bytes"
                " (PENSTOCK_MAX_TOOL_OUTPUT_BYTES)."
            )
            long = {"type": "mcp_protocol_error", "code": -32603, "message": message}
            return ToolResult({"error": long})
        return ToolResult({"output": output})

    async def _listed(self, asked: Mapping[str, Any], caller: bytes) -> list[dict[str, Any]]:
        names = asked["names"]
        return [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.parameters,
                "annotations": None,
            }
            for tool in await self._box.tools(caller)
            if (names is None or tool.name in names) and not asked["only_reading"]
        ]


def tool_servers(
    settings: GatewaySettings, environment: Mapping[str, str], own: ToolBox | None
) -> ToolServers:
    """The servers that the settings list, and this one's own tools."""
    mcp: ToolBox | None = None
    if settings.tools and settings.mcp_servers:
        mcp = ToolBox(
            max_processes=settings.max_mcp_processes,
            timeout_s=settings.tool_timeout_s,
            environment=child_environment(environment, _CERTIFICATES),
            command=_MCP_COMMAND,
            loads=orjson.loads,  # numbers in schemas are read here
        )
    return ToolServers(
        urls=settings.mcp_urls,
        networks=settings.internal_targets,
        mcp=mcp,
        own=own,
        max_output_bytes=settings.max_tool_output_bytes,
        max_calls=settings.max_mcp_processes,
    )


def _json(**fields: Any) -> str:
    return orjson.dumps(fields).decode()
