"""What this process asks of others over HTTP: key sets of token issuers, and webhooks.

`targets.py` says which addresses it may reach, `exchange.py` asks one, within a time and a size.
Others use `Exchanger`, `TargetGuard` and `message_of`.
May import `auth_worker.principals` (networks), `auth_worker.clock` and `auth_worker.errors`.
"""
