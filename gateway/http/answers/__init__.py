"""Answers on their way out: whole, as event streams or over a WebSocket, with their headers.

`responses.py` runs a request to its end and writes it, `answering.py` answers a generation in the
shape of whichever API asked, `hosted_answering.py` and `response_socket.py` a response,
`socket_lanes.py` what a WebSocket knows of its lanes.
Others use `answer`, `run_to_end` and `EventStreamResponse`, and the headers of the other files.
May import every room of `gateway.http` but `routes` and `openapi`, `gateway.request`,
`gateway.telemetry`, `gateway.bridge` and `gateway.errors`; `responses.py` imports only
`gateway.http.connections` of them.
"""
