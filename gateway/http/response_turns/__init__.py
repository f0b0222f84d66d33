"""A response of the Responses API: turns of a model, calls of tools between them, and the store.

`hosted_turns.py` runs the turns, `tool_asking.py` asks the servers of tools, `turn_makers.py` makes
the requests, `stored_turns.py` reads and keeps, `response_shape.py` writes.
Others use `HostedTurns`, `StoredTurn`, `ResponseShape` and `ToolAsker`.
May import `gateway.http.openresponses`, `gateway.http.render`, `gateway.http.errors`,
`gateway.http.answers.responses`, `gateway.request`, `gateway.storage`, `gateway.tools`,
`gateway.bridge` and `gateway.errors`.
"""
