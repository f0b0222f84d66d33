"""The tools that this server runs, in processes of their own, one call at a time.

`toolbox.py` lives in the gateway, `tool_process.py` is the other process (`python -m`) and has the
tools that installed packages register; `mcp_process.py` asks MCP servers (`mcp_client.py`
over `mcp_http.py`).
`tool_servers.py` finds what a response names of either.
A tool's death, delay or output never reaches the gateway's own state.
May import `gateway.errors` and `gateway.config`.
"""
