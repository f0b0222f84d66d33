"""Identify: who sends a request, before its body is read and before anybody is asked.

`caller.py` is what is known at once, `identity.py` who was identified a moment ago, `guesses.py`
slows addresses that try keys.
Others use `Caller`, `IdentityTable` and the readers of end users.
May import `gateway.errors`.
"""
