"""Code of other packages that sees requests before they are parsed, and answers routes of its own.

`hook.py` is what such a package imports; `runner.py` loads and calls it: each call within a time,
each failure the failure of one request. May import `gateway.config` and `gateway.errors`.
"""
