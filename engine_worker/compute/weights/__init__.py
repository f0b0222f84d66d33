"""From a checkpoint folder to arrays on the device: files, names, types, the fingerprint.

Streams one tensor at a time, without torch; `fingerprint.py` says what "the same model" means.
May import `engine_worker.compute.models`, `engine_worker.core.choice` and `engine_worker.errors`.
"""
