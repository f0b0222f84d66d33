"""Output on its way to the client: the events of a generation, and the fixed path they take.

`events.py` says what can happen, `pipeline.py` is the path: a gate holds output back until the
prompt is told, a queue hands it to the one reader.
Others make events and read them, which a `Pipeline` hands on.
May import `gateway.request.jobs` and `gateway.errors`.
"""
