"""Whole texts to numbers: encoders, pooling to vectors, classifiers, batches by length.

`families/` reads configs, `encoder.py` computes, `service.py` and `classification.py` answer one
question each, and `queue.py` is the thread that gathers questions into batches.
Others use `Embeddings`, `Classifications`, `TextQueue` and what makes them when a model is loaded.
May import `engine_worker.text`, `engine_worker.compute`, `engine_worker.core.choice`,
`engine_worker.core.scheduling` and `engine_worker.errors`.
"""
