"""Families of encoders: each file reads configs into an `EncoderSpec`, and names the tensors.

`registry.py` lists them.
Others use `encoder_spec`, `family_of` and `is_encoder`.
May import `engine_worker.compute.models`, `engine_worker.embedding.encoder_spec`,
`engine_worker.embedding.labels` and `engine_worker.errors`.
"""
