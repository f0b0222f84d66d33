"""Decoders of real models' shapes with random weights, as a backend of this machine packs them."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt

from benchmarks.shapes import SHAPES
from benchmarks.steps import BLOCK_SIZE
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.choice import BackendName, choose_backend
from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec

BACKENDS = tuple(BackendName)
WEIGHT_TYPES = ("float32", "bfloat16", "int8", "int4")


def random_decoder(shape: str, weight_type: str, backend: str = "xla") -> PackedDecoder:
    """A decoder of a shape, packed in memory.

    Args:
        shape: Of `SHAPES`.
        weight_type: Of `WEIGHT_TYPES`; integers are made from float32.
        backend: Of `BACKENDS`.

    Raises:
        ConfigurationError: The backend can't compute it here.
    """
    dtype = "bfloat16" if weight_type == "bfloat16" else "float32"
    graph = declare(decoder_spec(SHAPES[shape]), dtype)
    chosen = choose_backend(BackendName(backend), graph, weight_type, block_size=BLOCK_SIZE).backend
    generator = np.random.default_rng(0)
    number = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32

    def values(index: int) -> npt.NDArray[Any]:
        parameter = graph.parameters[index]
        if "norm" in parameter.path:
            return np.ones(parameter.shape, number)
        drawn = generator.standard_normal(parameter.shape, np.float32) * np.float32(0.02)
        return drawn.astype(number)

    arrays = DeviceArrays(chosen.packing.parts)
    leaves: list[jax.Array] = []
    for weight in chosen.packing.weights:
        leaves += map(arrays.put, weight.pack([values(index) for index in weight.sources]))
    return PackedDecoder(chosen, tuple(leaves))
