"""The families of decoders: how each one's `config.json` becomes a `DecoderSpec`, and its tensors.

One file for families that are alike; `registry.py` lists them all, `common.py` holds what several
of them read. Holds no jax.
Others use `FAMILIES`, `family_of` and `every_family`; other packages add a `Family` by entry point.
May import `engine_worker.compute.models` but for `hf_config`, and `engine_worker.errors`.
"""
