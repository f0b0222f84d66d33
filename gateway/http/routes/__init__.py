"""One file a resource: reads a body, starts a request, answers.

A route holds no state and decides nothing that another API would decide alike: that belongs to
`gateway.request`. Routes are closed by default; `access/guard.py` opens them by name.
Others use each file's `router`, and `app.py` alone does.
May import every room of the gateway but the app.
"""
