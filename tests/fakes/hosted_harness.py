"""A gateway with scripted workers and a real MCP server, for responses whose tools it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from protocol.wire.messages import Prepare
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.mcp_server import FakeMcpServer
from tests.fakes.running_gateway import RunningGateway, named_events_of, running_gateway

EVENT: Final[TypeAdapter[Any]] = TypeAdapter(ResponseStreamEvent)
CALL: Final = ("<call:calc__add>", '{"a": 2, ', '"b": 3}')
SUM: Final = ("It is ", "5.")


class Harness:
    """A gateway with scripted workers, and an MCP server."""

    def __init__(
        self, gateway: RunningGateway, auth: FakeAuth, engine: FakeEngine, server: FakeMcpServer
    ) -> None:
        self.gateway = gateway
        self.auth = auth
        self.engine = engine
        self.server = server

    def tool(self, **fields: Any) -> dict[str, Any]:
        return {"type": "mcp", "server_label": "calc", "require_approval": "never", **fields}

    async def post(self, *, status: int = 200, **fields: Any) -> dict[str, Any]:
        body = {"model": "demo", "input": "2 + 3?", "tools": [self.tool()], **fields}
        answer = await self.gateway.client.post("/v1/responses", json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        if status == 200:
            Response.model_validate(found, strict=True)
        return found

    async def stream(self, **fields: Any) -> list[dict[str, Any]]:
        body = {"model": "demo", "input": "2 + 3?", "tools": [self.tool()], "stream": True}
        answer = await self.gateway.client.post("/v1/responses", json={**body, **fields})
        assert answer.status_code == 200, answer.text
        *events, done = named_events_of(answer.text)
        assert done == "[DONE]"
        for event in events:
            EVENT.validate_python(event)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        return events

    def messages(self, number: int) -> list[dict[str, Any]]:
        """What a turn of the model has read."""
        prepare: Prepare = self.engine.of(Prepare)[number]
        found: list[dict[str, Any]] = orjson.loads(prepare.messages_json or "[]")
        return found

    def tools(self, number: int) -> list[str]:
        """What a turn of the model may call."""
        prepare: Prepare = self.engine.of(Prepare)[number]
        tools = orjson.loads(prepare.tools_json or "[]")
        return [tool["function"]["name"] for tool in tools]


def listing(server: FakeMcpServer, **paths: str) -> tuple[str, ...]:
    return tuple(f"{label}={server.url(path)}" for label, path in paths.items())


@asynccontextmanager
async def opened(
    socket_dir: Path, server: FakeMcpServer, tool_timeout_s: float = 30.0
) -> AsyncIterator[Harness]:
    listed = listing(
        server,
        calc="/modern/json",
        old="/legacy/sse",
        broken="/modern/json/garbage",
        slow="/modern/json/hangs",
        later="/modern/json/hangs_later",
        many="/modern/json/many",
        away="/modern/json/redirects?http://127.0.0.1:1/mcp",
    )
    async with running_gateway(
        socket_dir, mcp_servers=listed, tool_timeout_s=tool_timeout_s
    ) as gateway:
        await gateway.parser()
        engine = await gateway.engine(text=SUM, tool_format="hermes")
        # With it there, background responses are taken up.
        yield Harness(gateway, await gateway.auth(), engine, server)


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]
