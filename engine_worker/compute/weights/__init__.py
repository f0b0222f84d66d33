"""From a checkpoint folder to arrays on the device: files, names, types, the fingerprint.

Streams one tensor at a time, without torch; `fingerprint.py` says what "the same model" means.
Others use `open_checkpoint`, `load_leaves`, `fingerprint` and `weight_sources`.
May import `engine_worker.compute.models`, `engine_worker.compute.memory`,
`engine_worker.core.choice`, `engine_worker.text` and `engine_worker.errors`.
"""
