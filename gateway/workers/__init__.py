"""The other processes, as the gateway sees them: a link a role, questions out, answers in.

`wire.py` is the seam to the sockets; a link hands each answer to who waits for it.
Others use `AuthLink`, `EngineLink`, `ParserLink` and `EngineDirectory`.
May import `gateway.dispatch` (engines are what it gives work to), `gateway.bridge`,
`gateway.telemetry` and `gateway.errors`.
"""
