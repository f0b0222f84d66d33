"""From an error to an answer: its status, its headers, and in whose words its body tells it.

`error_table.py` has a row for every error code and writes OpenAI's body; `error_shape.py` picks
OpenAI's, Anthropic's or JSON-RPC's words by the path.
Others use the functions of both; nobody else writes an error body or picks a status.
May import `gateway.http.anthropic`, `gateway.http.mcp`, `gateway.request` and `gateway.errors`;
`error_table.py` lies below all other rooms of `gateway.http` and imports none.
"""
