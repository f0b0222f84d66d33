"""The tools that this server runs, in processes of their own, one call at a time.

`toolbox.py` lives in the gateway, `tool_process.py` is the other process (`python -m`) and has the
tools that installed packages register; `mcp_process.py` asks MCP servers (`mcp_client.py` over
`mcp_http.py`). `tool_servers.py` finds what a response names of either.
Others use `ToolBox` and `ToolServers`; a tool's death, delay or output stays in its process, and
callers have their places in turn.
May import `gateway.config`, `gateway.json_numbers`, `gateway.turns` and `gateway.errors`.
"""
