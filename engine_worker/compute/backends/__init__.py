"""Backends: who computes the blocks of a decoder, how weights are packed and how the cache lies.

`base.py` is the port and the forward over the blocks, `layer_groups.py`, `cache_type.py`,
`kv_layout.py` and `kv_memory.py` the paged cache, a folder is a backend. `xla` computes everything
and is the oracle of the others.
Others use the port `Backend`, and `choose_backend` of `choice.py` to get one.
May import `engine_worker.compute.models`, `engine_worker.compute.memory`,
`engine_worker.core.choice` (what it says of cache groups) and `engine_worker.errors`.
"""
