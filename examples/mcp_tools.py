"""A response whose tools the server runs: those of an MCP server that its operator lists.

.venv/bin/pip install openai "mcp>=2.3,<3"
.venv/bin/python examples/mcp_server.py 9000                         # in another terminal
PENSTOCK_MCP_SERVERS=weather=http://127.0.0.1:9000/mcp make serve    # in a third one
.venv/bin/python examples/mcp_tools.py "What is the weather in Berlin?"
"""

import os
import sys
from typing import Any

from openai import OpenAI

WEATHER: Any = {"type": "mcp", "server_label": "weather", "require_approval": "never"}
# A small model is told which tool to call; a large one finds out by itself.
CHOICE: Any = {"type": "mcp", "server_label": "weather", "name": "get_weather"}


def main() -> None:
    """Ask once; the answer holds the list of tools, the call, its result, and the text."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "not-needed-on-loopback"),
    )
    response = client.responses.create(
        model="penstock-demo",
        input=" ".join(sys.argv[1:]) or "What is the weather in Berlin?",
        tools=[WEATHER],
        tool_choice=CHOICE,
        temperature=0,
    )
    for item in response.output:
        if item.type == "mcp_list_tools":
            print(f"{item.server_label} has", *(tool.name for tool in item.tools))
        elif item.type == "mcp_call":
            print(f"{item.name}({item.arguments}) -> {item.output or item.error}")
    print(response.output_text)


if __name__ == "__main__":
    main()
