"""Connections: HTTP/1.1 and WebSockets on them, how many there may be, and their end.

`http_protocol.py` is uvicorn's protocol with bounds on a head's size and time, `limits.py`
counts connections by address, `websocket.py` has frames, `disconnect.py` tells who has left.
Others use `watch` of `disconnect.py` and `WebSocket`; the server takes the rest.
May import `gateway.http.errors.error_table`.
"""
