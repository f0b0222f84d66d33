"""What talks to gateways: the handler of commands, what is counted, and the clock that ticks.

`handler.py` has a method a command and runs in the I/O thread, `ticker.py` and `housekeeping.py`
are periodic, `webhook_desk.py` posts.
Others use `AuthHandler`, which `service.py` puts together with what it needs.
May import every room of the auth worker.
"""
