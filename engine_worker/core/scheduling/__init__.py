"""Which tokens of which choices are computed next, and which KV blocks hold them.

Scheduler, block pool, prefix cache, waiting list: pure policy with plain tests, no device.
Others use `Scheduler`, `BlockPool`, `block_hashes` and `TurnQueue`.
May import `engine_worker.core.choice` and `engine_worker.errors`.
"""
