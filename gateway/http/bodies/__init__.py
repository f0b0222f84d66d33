"""Request bodies: read within bounds, parsed beside the loop when large, made into jobs.

`reading.py` bounds them by caller and in sum, `body_pool.py` and `body_process.py` parse large ones
in another process, `parsers.py` has a function a kind of body, `convert.py` is the only place
that knows body and wire; `multipart.py` and `uploads.py` read files.
Others use `Bodies`, the kinds of `parsers.py` and the classes of `parsed_bodies.py`.
May import `gateway.http.schemas`, `gateway.http.anthropic`, `gateway.http.openresponses`,
`gateway.http.scoring`, `gateway.http.mcp`, `gateway.http.connections`, `gateway.request`,
`gateway.batches`, `gateway.bridge`, `gateway.turns` and `gateway.errors`.
"""
