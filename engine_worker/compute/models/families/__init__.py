"""The families of decoders: how each one's `config.json` becomes a `DecoderSpec`, and its tensors.

One file for families that are alike; `registry.py` lists them all, `common.py` holds what several
of them read. May import the rest of `engine_worker.compute.models` but for `hf_config`, and
`engine_worker.errors`; holds no jax.
"""
