"""The backend in plain XLA: every block, on every device; others are held to it by tests.

`backend.py` binds the modules of `compute.models`, `pages.py` owns the cache's layout,
`paged_attention.py` reads it.
Others use `XlaBackend`; other backends use its blocks where they have none.
May import `engine_worker.compute.backends` and `engine_worker.compute.models`.
"""
