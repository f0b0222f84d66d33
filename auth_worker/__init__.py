"""The auth worker: the only owner of keys, limits, usage totals and the audit log.

Two words are kept apart. A lease is *settled*: the gateway says what its request used (`Settle`)
and what was reserved for the rest is free again (`open_leases.py`). What is charged is *booked*: a
row of the ledger (`BookUsage`), made of a settlement, of the last report of a lease that expired,
or of a request that takes no lease. So everything settled is booked, and not the reverse.
Others start it with `python -m auth_worker`, and speak to it in messages only.
May import `protocol`.
"""
