"""From the events of a request to the bytes of OpenAI's answers, whole or as server-sent events.

Templates are rendered once a request; an event encodes only what changes.
Others use the collectors of `answer.py` and the renderers of `stream.py`.
May import `gateway.request` (its events and options), `gateway.http.schemas` and
`gateway.http.errors.error_table`.
"""
