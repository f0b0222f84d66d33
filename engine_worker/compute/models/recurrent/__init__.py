"""Mixers with a state of one size: short convolutions, gated delta nets, Mamba-2.

`specs.py` says what they are, `state.py` how a block meets its state, one file each how they are
computed: pure functions of weights, tokens and the state before them. Where states are kept is the
backend's.
Others use `RecurrentSpec` and `recurrent_block`.
May import `engine_worker.compute.models` below the decoder.
"""
