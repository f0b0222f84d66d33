"""An encoder's fingerprint is of all that makes its vectors, not of its last layer alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine_worker.embedding.dense import DenseSpec, DenseWeights
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.loading.encoder import what_follows

LAYER = DenseWeights(np.ones((2, 3), np.float32), np.zeros(2, np.float32))


def spec(folder: str = "/a", activation: str = "Tanh") -> PoolingSpec:
    return PoolingSpec("mean", dense=(DenseSpec(Path(folder), 3, 2, True, activation),))


def test_pooling_prompts_and_the_numbers_of_layers_count_and_places_dont() -> None:
    known = what_follows(spec(), (LAYER,))
    assert what_follows(spec("/b"), (LAYER,)) == known
    changed = DenseWeights(LAYER.weight * 2, LAYER.bias)
    others = [
        what_follows(spec(), (changed,)),
        what_follows(spec(activation="ReLU"), (LAYER,)),
        what_follows(replace(spec(), kind="cls"), (LAYER,)),
        what_follows(replace(spec(), prompts=(("query", "q: "),)), (LAYER,)),
        what_follows(None, ()),
    ]
    assert len({str(sorted(one.items())) for one in (known, *others)}) == len(others) + 1
