"""The OpenAPI document of routes that read their bodies, and write their answers, themselves.

`document.py` has bodies and examples of every route, `queries.py` what may stand in queries,
`answers_….py` what the routes of one surface answer, in the words of `shapes.py`.
Others use `describe`; a new route gets its lines here.
May import `gateway.http.access` (route rules), `gateway.http.query`, `gateway.http.schemas`,
`gateway.http.anthropic`, `gateway.http.openresponses`, `gateway.http.scoring`,
`gateway.http.mcp`, `gateway.http.errors` and `gateway.batches`.
"""
