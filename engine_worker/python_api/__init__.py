"""The engine within one process, for scripts and notebooks: `from engine_worker import LLM`.

No sockets and no server; the same engine, the same outputs.
May import every room but `serving`.
"""
