"""Decoders packed for a backend in memory, and the mark of tests that need the native library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.errors import NativeUnavailableError


def why_not_native() -> str:
    """Empty when the native library is there."""
    try:
        load()
    except NativeUnavailableError as error:
        return str(error)
    return ""


needs_native = pytest.mark.skipif(bool(why_not_native()), reason=why_not_native())


def packed(
    weights: DecoderWeights,
    backend_name: str,
    weight_type: str,
    block_size: int = 8,
    kv_dtype: str = "auto",
) -> PackedDecoder:
    """Weights as a backend takes them, quantised from float32.

    Args:
        weights: Of any type.
        backend_name: `xla` or `cpu_native`.
        weight_type: As they are to be held.
        block_size: Of the cache.
        kv_dtype: Of keys and values.
    """
    dtype = weight_type if weight_type in ("float32", "bfloat16") else "float32"
    graph = declare(weights.graph.spec, dtype)
    backend: Backend
    if backend_name == "xla":
        backend = XlaBackend(graph, weight_type, kv_dtype)
    else:
        load()
        backend = CpuNativeBackend(graph, weight_type, block_size, kv_dtype=kv_dtype)
    values = [np.asarray(leaf.astype(graph.dtype)) for leaf in weights.leaves]
    leaves: list[jax.Array] = []
    for weight in backend.packing.weights:
        leaves += map(jnp.asarray, weight.pack([values[index] for index in weight.sources]))
    return PackedDecoder(backend, tuple(leaves))
