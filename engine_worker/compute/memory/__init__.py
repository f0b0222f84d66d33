"""Memory of the host that arrays lie in: in large pages, and given back when nothing is in it.

Weights are put into it one behind the other, and XLA's own arrays are told to lie in large pages.
Others use `DeviceArrays`, `HostArena`, `use_large_pages`, `release_pages`, `release_rows`,
`release_after_compiling` and `trim_heap`.
May import `engine_worker.errors`.
"""
