"""The decoders that benchmarks make have the shapes that they are named after."""

import numpy as np
import pytest

from benchmarks.random_decoder import random_decoder
from benchmarks.shapes import SHAPES
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from tests.fakes.packed_decoder import needs_native


@pytest.mark.parametrize(
    ("shape", "millions"), [("SmolLM2-135M", 135), ("Qwen2.5-0.5B", 494), ("SmolLM2-1.7B", 1711)]
)
def test_a_shape_has_as_many_parameters_as_its_model(shape: str, millions: int) -> None:
    graph = declare(decoder_spec(SHAPES[shape]), "bfloat16")
    assert round(graph.num_parameters / 1e6) == millions


@needs_native
@pytest.mark.parametrize("weight_type", ["bfloat16", "int8"])
def test_a_decoder_is_packed_for_its_backend(weight_type: str) -> None:
    decoder = random_decoder("tiny", weight_type, "cpu_native")
    assert decoder.backend.name == "cpu_native"
    assert decoder.backend.weight_type == weight_type
    parts = decoder.backend.packing.parts
    assert [leaf.shape for leaf in decoder.leaves] == [part.shape for part in parts]
    assert all(np.asarray(leaf).any() for leaf in decoder.leaves)
