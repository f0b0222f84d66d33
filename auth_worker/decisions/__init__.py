"""What is granted: limits, leases and the authority that decides over them in memory.

Pure: no disk, no socket, no thread; time is injected, what must last is emitted as operations.
Start at `authority.py`; `open_leases.py` has leases, `meter_table.py` the numbers of limits.
Others use `Authority` and its `Rules`; nobody else changes a number that limits count.
May import `auth_worker.records`, `auth_worker.principals`, `auth_worker.clock` and
`auth_worker.errors`.
"""
