"""The engine within one process, for scripts and notebooks: `from engine_worker import LLM`.

No sockets and no server; the same engine, the same outputs.
Others use `LLM`, and no other name of this room.
May import every room but `serving`.
"""
