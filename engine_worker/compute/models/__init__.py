"""Decoder models: what a checkpoint's config says, and the one forward that computes it.

A family is a normaliser in `hf_config.py` that fills a `DecoderSpec`; the decoder reads only that.
May import `engine_worker.compute.sampling` (limits only) and `engine_worker.errors`.
"""
