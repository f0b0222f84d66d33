"""Families of encoders: each file reads configs into an `EncoderSpec`, and names the tensors.

`registry.py` lists them. May import `engine_worker.compute.models` and the parts of
`engine_worker.embedding` that compute.
"""
