"""Who may use a route, before its body is read; hooks that see it; and answers that are kept.

`guard.py` guards every route by the table of `route_rules.py` and the key that is `presented.py`,
whose handlers get what is in `guarded_request.py`; `kind_of_body.py` looks at the type of what it
takes; `hooking.py` shows bodies to hooks; `replaying.py` answers a repeated `Idempotency-Key` once,
claimed in the store (`stored_claims.py`) or by the auth worker (`kept_answers.py`).
Others use `GuardedRoute`, `caller_of`, `parsed_body` and `ROUTE_RULES`; no route looks at keys.
May import `gateway.http.parts`, `gateway.http.bodies`, `gateway.http.connections`,
`gateway.http.schemas`, `gateway.request`, `gateway.hooks`, `gateway.telemetry`,
`gateway.storage`, `gateway.bridge` and `gateway.errors`.
"""
