"""The life of a request, from its authorisation to its settlement, for every kind of metered work.

Start at `request.py`, the one life, and `work.py`, what its kinds have to do; `generation.py` is
chat and completions, `questions.py` one question to an engine, `choice.py` one choice from engine
to engine, `lease.py` what may be used, `events.py` what the outside sees. Knows no HTTP, no socket.
May import `gateway.workers`, `gateway.dispatch`, `gateway.ledger`, `gateway.tools`,
`gateway.telemetry` and `gateway.bridge`.
"""
