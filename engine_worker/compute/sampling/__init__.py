"""Sampling on the device: penalties, filters, noise keyed by position, log probabilities.

Every function is pure over arrays `[B, V]`; given equal logits the draw is bitwise the same.
Others use `sample_tokens` with its `SamplingRows`, and `score_tokens`.
May import nothing of ours.
"""
