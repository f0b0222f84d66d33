"""The one life of all metered work: identified, reserved, prepared, running, ending, settled.

Start at `request.py`, the life, and `work.py`, what a kind of work has to do; `background.py` runs
beside a request and ends with it, `sessions.py` has all that live, `work_trace.py` their traces.
Others use `Request`, `Work`, `SimpleWork` and `SessionTable`; states change in `request.py` only.
May import `gateway.request.leases`, `gateway.request.jobs`, `gateway.request.callers`,
`gateway.workers`, `gateway.ledger`, `gateway.bridge` and `gateway.errors`.
"""
