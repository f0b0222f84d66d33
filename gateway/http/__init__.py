"""HTTP in, bytes out: the ASGI app, uvicorn's server, access to routes, bodies and errors.

`app.py` wires it, `access.py` guards every route, `convert.py` turns a checked body into a job.
`routes/` has one file a resource, `schemas/` the bodies, `render/` the answers.
May import every room of the gateway; nothing else imports this one.
"""
