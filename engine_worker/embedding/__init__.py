"""Texts to vectors: encoders of the BERT family, pooling, and batches by length.

`service.py` answers one question, `queue.py` is the thread that gathers them into batches.
May import `engine_worker.text` and `engine_worker.compute`.
"""
