"""The backend in plain XLA: every block, on every device; others are held to it by tests.

`backend.py` binds the modules of `compute.models`, `pages.py` owns the cache's layout,
`paged_attention.py` reads it.
May import `engine_worker.compute.backends` and `engine_worker.compute.models`.
"""
