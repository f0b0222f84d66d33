"""What talks to gateways: commands in, an output a step and gateway out, credits, orphans.

`service.py` runs the process, `handler.py` takes commands in the I/O thread, `step_loop.py` is the
engine's own thread. Knows no HTTP.
Others use `run` of `service.py`, from `__main__.py`.
May import every room but `python_api`.
"""
