"""The model runner: programs a bucket, packing of a step, and the device state between steps.

`jax_runner.py` implements the port in `core/choice/batch.py`; programs are compiled once and kept.
May import the other rooms of `compute` but `weights`, and `engine_worker.core.choice`.
"""
