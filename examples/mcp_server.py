"""An MCP server with one tool, made with the `mcp` package.

.venv/bin/pip install "mcp>=2.3,<3"
.venv/bin/python examples/mcp_server.py 9000    # prints its URL; 0 takes a free port
PENSTOCK_MCP_SERVERS=weather=http://127.0.0.1:9000/mcp make serve    # in another terminal
"""

import socket
import sys
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer

server = MCPServer("weather")


@server.tool()
def get_weather(city: str) -> dict[str, Any]:
    """The weather in a city."""
    return {"temperature": 10 + len(city), "condition": "sunny"}


def main() -> None:
    """Serve until it is interrupted."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000))
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
