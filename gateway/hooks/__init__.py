"""Code of other packages that sees requests before they are parsed, and answers routes of its own.

`runner.py` loads and calls it: each call within a time, each failure the failure of one request.
Others use `HookRunner`; packages of hooks import `hook.py`.
May import `gateway.config` and `gateway.errors`.
"""
