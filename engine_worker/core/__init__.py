"""The engine as an ordinary object: add, abort and extend choices, step, collect what came out.

No jax anywhere below this folder: the device is the port in `choice/batch.py`. Start at
`engine.py`; `acceptance.py` checks what comes in, `engine_output.py` gathers what goes out.
Others use `Engine`, `GatewayOutput` and `CreditPolicy`.
May import `engine_worker.text`, `engine_worker.grammar` and `engine_worker.errors`.
"""
