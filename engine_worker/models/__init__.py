"""Decoder models: what a checkpoint's config says, and the one forward that computes it."""
