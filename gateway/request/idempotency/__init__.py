"""Answers kept under an `Idempotency-Key`, so that a repeated request is answered once.

`replays.py` has the table of this process, `sealing.py` the cipher with which only who presented
the key reads what the auth worker keeps.
Others use `ReplayTable`, `seal` and `unseal`.
May import `gateway.errors`.
"""
