"""What talks to gateways: commands in, one output a step and gateway out, credits, orphans, isolation.

`service.py` runs the process, `handler.py` takes commands in the I/O thread, `step_loop.py` is the
engine's own thread. Knows no HTTP.
May import every room but `python_api`.
"""
