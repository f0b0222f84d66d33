"""Tools and models of this server for a program that speaks MCP, with the `mcp` package.

make serve                                     # in another terminal
.venv/bin/pip install "mcp>=2.3,<3"
.venv/bin/python examples/mcp_client.py        # OPENAI_BASE_URL: another server; OPENAI_API_KEY
"""

import asyncio
import os

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1")
key = os.environ.get("OPENAI_API_KEY", "any")


async def main() -> None:
    """List the tools, and ask a model by one of them."""
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=600) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        for tool in (await client.list_tools()).tools:
            print(f"{tool.name}: {tool.description}")
        arguments = {"prompt": "What is 12 + 30?", "max_tokens": 32}
        answer = await client.call_tool("generate", arguments)
        for part in answer.content:
            if part.type == "text":
                print(part.text)


if __name__ == "__main__":
    asyncio.run(main())
