"""The model runner: programs a bucket, packing of a step, and the device state between steps.

`jax_runner.py` implements the port in `core/choice/batch.py`; programs are compiled once and kept.
Others use `JaxModelRunner`, `Profiler` and `prepare_backend`.
May import `engine_worker.compute.backends`, `engine_worker.compute.memory`,
`engine_worker.compute.models`, `engine_worker.compute.sampling`, `engine_worker.core.choice`,
`engine_worker.core.decoding` and `engine_worker.errors`.
"""
