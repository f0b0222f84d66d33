"""The tools of a request: custom tools, deprecated functions, the choice among them.

Whatever a client calls a tool becomes a function with a schema here.
Others use each file's functions; `tool_places.py` says where in a body a tool stood.
May import `gateway.http.schemas.base`.
"""
