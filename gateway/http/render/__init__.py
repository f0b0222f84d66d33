"""From the events of a request to the bytes of OpenAI's answers, whole or as server-sent events.

Templates are rendered once a request; an event encodes only what changes.
May import `gateway.request` (its events and options) and `gateway.http.errors.error_table`.
"""
