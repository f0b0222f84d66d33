"""An encoder's fingerprint is of all that makes its vectors, not of its last layer alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.dtype import DtypeChoice
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.embedding.dense import DenseSpec, DenseWeights
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.loading.decoder import types_of
from engine_worker.loading.encoder import what_follows
from tests.fakes.tiny_checkpoint import TINY_LLAMA

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


def test_how_a_decoders_vectors_are_pooled_counts_where_it_makes_some() -> None:
    backend = XlaBackend(declare(decoder_spec(TINY_LLAMA), "float32"))
    dtype = DtypeChoice("float32", "")

    def told(pooling: PoolingSpec | None, *layers: DenseWeights) -> str:
        embedder: Any = pooling and SimpleNamespace(pooling=pooling, layers=layers)
        return str(sorted(types_of(backend, dtype, embedder, deterministic=False).items()))

    found = [
        told(None),
        told(PoolingSpec("last")),
        told(PoolingSpec("mean")),
        told(spec(), LAYER),
        told(spec(), DenseWeights(LAYER.weight * 2, LAYER.bias)),
    ]
    assert len(set(found)) == len(found)
    assert told(spec("/b"), LAYER) == told(spec("/a"), LAYER)


def test_another_reading_of_the_same_config_is_another_model() -> None:
    """Versions that read a config in two ways had one fingerprint, and went on with each other's
    streams."""
    decoder = decoder_spec(TINY_LLAMA)
    layer = replace(decoder.layers[0].attention, softcap=50.0)
    changed = (replace(decoder.layers[0], mixer=layer), *decoder.layers[1:])
    found = {
        types_of(
            XlaBackend(declare(one, "float32")),
            DtypeChoice("float32", ""),
            None,
            deterministic=False,
        )["decoder"]
        for one in (decoder, replace(decoder, layers=changed))
    }
    assert len(found) == 2
