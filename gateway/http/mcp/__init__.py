"""This server as an MCP server: what a message says, what it is answered, which tools there are.

`messages.py` reads messages, checks versions and headers and writes answers; `tools.py` has the
tools that are offered.
Others use the functions of both; the route is in `gateway/http/routes/inference/mcp.py`.
May import `gateway.http.schemas`, `gateway.request`, `gateway.tools` and `gateway.errors`.
"""
