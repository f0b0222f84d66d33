"""The tools that installed packages register: run in processes of their own, one call at a time.

`toolbox.py` lives in the gateway, `tool_process.py` is the other process (`python -m`).
A tool's death, delay or output never reaches the gateway's own state.
May import `gateway.errors` and `gateway.config`.
"""
