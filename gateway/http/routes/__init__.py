"""One file a resource: reads a body, starts a request, answers.

A route holds no state and decides nothing that another API would decide alike: that belongs to
`gateway.request`. Routes are closed by default; `gateway.http.access.guard` opens them by name.
May import all of `gateway.http` but the app.
"""
