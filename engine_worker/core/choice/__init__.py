"""One choice as the engine works on it, and what a step asks of a model runner: host data only.

`choice.py` is mutable and private to the engine; `batch.py` is the port to whoever computes.
Others use `Choice`, `StepBatch` and the port `ModelRunner`.
May import nothing of ours but `protocol`.
"""
