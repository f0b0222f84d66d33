"""Whole texts to numbers: encoders, pooling to vectors, classifiers, batches by length.

`families/` reads configs, `encoder.py` computes, `service.py` and `classification.py` answer one
question each, and `queue.py` is the thread that gathers questions into batches.
May import `engine_worker.text` and `engine_worker.compute`.
"""
