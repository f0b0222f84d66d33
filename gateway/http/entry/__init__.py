"""What every request passes before any route: ids, hosts, sizes, origins, and the way to its route.

`middleware.py` makes ids and the record for the access log, `host_guard.py` and `edge.py` look at
`Host` and `Origin`, `dispatcher.py` finds the route and answers what it raises.
Others use `HostGuard`; the app puts the rest around its routes.
May import `gateway.http.errors`, `gateway.telemetry`, `gateway.config`, `gateway.edge_settings` and
`gateway.errors`.
"""
