"""Decoder models: what a checkpoint's config says, and the one forward that computes it.

A family is a file in `families/` that reads a `DecoderSpec` from the config and names its tensors;
the decoder reads only that.
Others use `load_spec`, `DecoderSpec`, `Decoder` and the blocks of `layers.py`.
May import `engine_worker.compute.sampling` (limits only) and `engine_worker.errors`.
"""
