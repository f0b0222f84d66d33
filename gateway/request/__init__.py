"""The life of a request, from its authorisation to its settlement, for every kind of metered work.

By step: `callers` (identify), `leases` (reserve, settle), `preparation`, `parsers`, `choices`
(route, generate), `delivery`. `jobs` says what is asked, `lifecycle` is the one life, `kinds` are
those who live it, `idempotency` keeps answers. Knows no HTTP, no socket.
Others have `factory.py` make requests, and use what the rooms name.
May import `gateway.workers`, `gateway.dispatch`, `gateway.ledger`, `gateway.tools`,
`gateway.telemetry`, `gateway.bridge` and `gateway.errors`.
"""
