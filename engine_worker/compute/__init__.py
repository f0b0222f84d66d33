"""What runs on the device: models, sampling, attention, weights, memory, the runner of steps.

The only rooms that may import jax, beside `embedding` and `loading`. Each is a folder of its own.
Others use those rooms; nothing lies in this folder itself.
May import `engine_worker.core.choice` (what a step asks for) and `engine_worker.errors`.
"""
