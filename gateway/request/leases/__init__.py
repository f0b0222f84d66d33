"""Reserve and settle: what a request may use at most, holds of that, and has used in the end.

`work_bound.py` is the bound, `budget.py` counts its tokens, `lease.py` reserves, corrects, grows
and settles; `takes.py` has what several attempts share that are booked once.
Others use `RequestLease`, `TokenBudget`, `Bound` and `Takes`.
May import `gateway.request.jobs`, `gateway.request.callers`, `gateway.workers`, `gateway.ledger`,
`gateway.bridge` and `gateway.errors`.
"""
