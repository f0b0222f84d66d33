"""Constrained decoding: from a `Grammar` of the wire to the tokens that an output may take next."""
