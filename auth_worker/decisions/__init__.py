"""What is granted: limits, leases and the authority that decides over them in memory.

Pure: no disk, no socket, no thread; time is injected, what must last is emitted. May be touched
when a limit, a lease or a refusal changes. May import `records`, `principals` and below.
"""
