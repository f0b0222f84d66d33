"""Sampling on the device: penalties, filters, noise keyed by position, log probabilities.

Every function is pure over arrays `[B, V]`; given equal logits the draw is bitwise the same.
May import nothing of ours.
"""
