"""Connections: HTTP/1.1 and WebSockets on them, how many there may be, and their end.

`http_protocol.py` is uvicorn's protocol with bounds on a head's size and time, `limits.py`
counts connections by address, `arrival.py` has them before they say anything, and TLS with what
`certificate.py` has read, `answer_cycle.py` writes answers, `socket_buffers.py` bounds what waits
on WebSockets by caller, `websocket.py` has frames, `disconnect.py` tells who has left,
`arrived_body.py` takes bodies that have come.
Others use `watch` of `disconnect.py`, `arrived_body`, `WebSocket` and `SocketBuffers`; the server
takes the rest.
May import `gateway.http.errors.error_table` and `gateway.telemetry`.
"""
