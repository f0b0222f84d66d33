"""The life of a request, from its authorisation to its settlement, for every kind of metered work.

Start at `generation.py`; `choice.py` is one choice from engine to engine, `lease.py` what it may
use, `events.py` what the outside sees of it. Knows no HTTP and no socket.
May import `gateway.workers`, `gateway.dispatch`, `gateway.ledger`, `gateway.telemetry`.
"""
