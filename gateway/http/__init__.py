"""HTTP in, bytes out: the ASGI app, uvicorn's server, and a room for each thing on a request's way.

In order: `connections`, `entry`, `access` (who), `bodies` with `schemas` (what), `routes`, then
`answers` with `render` and `errors`. `response_turns` and `background` serve Responses;
`anthropic`, `openresponses`, `organization`, `scoring` and `mcp` have APIs of others' shape.
Others start it: `application.py` makes `parts.py`, `server.py` serves; no room below imports it.
May import every room of the gateway.
"""
