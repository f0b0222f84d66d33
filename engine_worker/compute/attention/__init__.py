"""The paged KV cache and attention over it.

`kv_cache.py` owns layout, size and writing of pages; `paged.py` reads them.
May import `engine_worker.compute.models` (the spec of a decoder) and `engine_worker.errors`.
"""
