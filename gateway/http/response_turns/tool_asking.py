"""Questions to the servers of a response's tools, each a request of its own."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.errors import GatewayError, InvalidRequestError
from gateway.http.openresponses.events import ResponseEvent, ToolsListed, ToolsListing
from gateway.http.openresponses.hosted import HostedPlan, HostedTool, lists_enough
from gateway.json_numbers import loads
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import Identity
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import GenerationJob
from gateway.tools.tool_servers import (
    CALL_TOOL,
    LIST_TOOLS,
    NamedServer,
    ServerTools,
    ToolRunner,
    ToolServers,
)
from gateway.tools.toolbox import ToolResult
from protocol.errors import ErrorCode

EXECUTE_ENDPOINT: Final = "/v1/tools/execute"
"""Whose scope a key needs for tools of this server, whichever way they are run."""


class _Refusal:
    """Refuses what is asked, once the caller is known to be one who may ask."""

    def __init__(self, error: GatewayError) -> None:
        self._error = error

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        """Raise the error."""
        raise self._error


def refused_tool(error: GatewayError, job: GenerationJob) -> str | None:
    """The tool whose schema a parser couldn't read, as the model sees its name; None for others."""
    if error.code is not ErrorCode.INVALID_REQUEST or error.param not in job.tool_params:
        return None
    tools: list[Any] = loads(job.enforced_tools_json or "[]")
    name: str = tools[job.tool_params.index(error.param)]["function"]["name"]
    return name


@dataclass(slots=True)
class MadeCall:
    """A call that a turn has made."""

    id: str
    tool: HostedTool
    pieces: list[str] = field(default_factory=list)


class ToolAsker:
    """Asks the servers that one response names.

    Args:
        servers: Those that may be named.
        requests: Makes the requests.
        caller: Who asks.
        request_id: Of the response; those of the questions are made of it.

    Attributes:
        identity: Who the caller turned out to be; None before the first answer.
        is_continued: Whether the response has begun, so that a drain lets it finish.
    """

    def __init__(
        self, servers: ToolServers, requests: RequestFactory, caller: Caller, request_id: str
    ) -> None:
        self.identity: Identity | None = None
        self.is_continued = False
        self._find = servers.find
        self._requests = requests
        self._caller = caller
        self._request_id = request_id
        self._servers: dict[str, ServerTools] = {}
        self._num_asked = 0

    async def list_tools(
        self, plan: HostedPlan, known: Mapping[str, dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], list[ResponseEvent]]:
        """List the tools of every server; one that can't list them has none, and an event says why.

        Args:
            plan: Of the request.
            known: Earlier lists by label (`known_list`); those of the same servers are used where
                they have all that may be used now.

        Returns:
            The tools by label, and what is to be told of the new lists.

        Raises:
            GatewayError: The request names what may not be asked, the caller may not use tools, or
                too many wait for them.
        """
        for path, named in plan.servers:
            self._servers[named.label] = await self._found(named, path)
        lists: dict[str, list[Any]] = {}
        missing: list[ServerTools] = []
        for label, server in self._servers.items():
            before = known.get(label)
            # A label may mean another server than it did in an earlier response.
            is_its = before is not None and before["mark"] == server.mark
            if before is not None and is_its and lists_enough(before, server.named):
                lists[label] = before["tools"]
            else:
                missing.append(server)
        found = await asyncio.gather(
            *(self._ask(server.runner, LIST_TOOLS, server.listing()) for server in missing),
            return_exceptions=True,
        )
        events: list[ResponseEvent] = []
        for server, result in zip(missing, found, strict=True):
            if isinstance(result, BaseException):
                raise result
            label, error = server.named.label, result.get("error")
            lists[label] = [] if error is not None else result["tools"]
            said = None if error is None else str(error["message"])
            listing = ToolsListing(label, server.list_mark)
            events += [listing, ToolsListed(label, lists[label], said)]
        return lists, events

    async def _found(self, named: NamedServer, path: str) -> ServerTools:
        """The server that a request names.

        Raises:
            GatewayError: It is none; who may not use tools isn't told which ones there are.
        """
        try:
            return self._find(named, path)
        except InvalidRequestError as error:
            await self._ask(_Refusal(error), LIST_TOOLS, "{}")
            raise

    async def call(self, tool: HostedTool, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Call a tool: `output`, or `error`.

        Raises:
            GatewayError: The call was not made.
        """
        server = self._servers[tool.label]
        asked = server.call(tool.name, arguments, tool.schema_json)
        return await self._ask(server.runner, CALL_TOOL, asked)

    async def _ask(self, runner: ToolRunner, name: str, arguments_json: str) -> dict[str, Any]:
        """A question to a server, as a request of its own."""
        self._num_asked += 1
        request, work = self._requests.tool(
            EXECUTE_ENDPOINT,
            runner,
            name,
            arguments_json,
            self._caller,
            f"{self._request_id}q{self._num_asked}",
            is_continued=self.is_continued,
        )
        try:
            await request.start()
        finally:
            request.end("aborted")
            self.identity = request.identity or self.identity
            request.release()
        result: dict[str, Any] = work.result.result
        return result
