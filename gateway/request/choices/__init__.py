"""Route and generate: the choices of one generation at engines, and what becomes of their output.

`launcher.py` finds engines, `choice.py` is one choice from engine to engine, `answer.py` all of
them up to their one end, `lease_watch.py` keeps them within what is reserved.
Others use `Answer`, `Launcher` and `EnginePool`.
May import `gateway.request.lifecycle`, `gateway.request.parsers`, `gateway.request.delivery`,
`gateway.request.leases`, `gateway.request.jobs`, `gateway.request.preparation`,
`gateway.workers`, `gateway.dispatch`, `gateway.bridge` and `gateway.errors`.
"""
