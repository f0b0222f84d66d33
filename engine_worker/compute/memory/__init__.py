"""Memory of the host that arrays lie in: in large pages, and given back when nothing is in it.

Others use `host_memory.py`. May import no other room.
"""
