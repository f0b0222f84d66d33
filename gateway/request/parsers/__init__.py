"""A request's text at a parser worker: content, reasoning and tool calls apart.

`parsing.py` keeps the session and replays it when a parser dies, `token_spans.py` says which
tokens made which piece.
Others use `ParseSession` and `parse_opening`.
May import `gateway.request.delivery` (events), `gateway.request.jobs`, `gateway.workers`,
`gateway.bridge` and `gateway.errors`.
"""
