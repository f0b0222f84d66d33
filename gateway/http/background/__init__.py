"""Responses that outlive their requests: taken from the store, made once, and told to who asks.

`background_responses.py` takes them, `background_take.py` is an attempt at one, which uses what is
in `take_parts.py`, `background_task.py` is what the store keeps of one, `background_trace.py` its
trace, `event_log.py` streams what was told and what comes.
Others use `BackgroundResponses`, `BackgroundTask` and `EventLogResponse`.
May import `gateway.http.response_turns`, `gateway.http.openresponses`, `gateway.http.errors`,
`gateway.http.connections`, `gateway.request`, `gateway.storage`, `gateway.tools`,
`gateway.telemetry`, `gateway.housekeeping` and `gateway.errors`.
"""
