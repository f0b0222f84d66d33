"""Small decoders with experts in quantised files, and what they compute when activations are int8.

The dense reference dequantises all weights to float32; rounded as the kernels round, it differs
from them by the order of float32 sums alone. So greedy tokens have to be the same ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.models import layers
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.models.layers import Matrix
from engine_worker.compute.models.spec import MoeSpec
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.loader import load_weights, stored_formats
from engine_worker.loading.weights import load_for_backend
from tests.fakes.gguf_blocks import encoded
from tests.fakes.gguf_families import GGUF_FAMILIES, GgufCase
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint
from tests.fakes.tiny_decoder import GreedyReference

BLOCK_SIZE, MAX_LENGTH = 8, 88
WIDTH = 256
"""Of everything that is multiplied: one block of the widest formats."""
SCALE = 0.08
"""Of weights: an activation that was rounded the other way is not made larger by every layer."""
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def case_of(arch: str, architecture: str) -> GgufCase:
    """A family of `GGUF_FAMILIES`, as wide as blocks of 256 numbers ask for."""
    (case,) = (
        case
        for case in GGUF_FAMILIES
        if (case.arch, case.config["architectures"][0]) == (arch, architecture)
    )
    config: dict[str, Any] = {**case.config, **_SIZES}
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if name in config:
            config[name] = WIDTH
    return replace(case, config=config)


def write_stored(folder: Path, case: GgufCase, kind: str, **options: Any) -> Path:
    """A folder with the config of a case and its random weights in a GGUF file of one type."""
    folder.mkdir(exist_ok=True)
    config = dict(case.config)
    write_checkpoint(folder, config, case.spelled(random_tensors(config, scale=SCALE)))
    path = folder / "m.gguf"
    write_gguf(
        path,
        folder,
        arch=case.arch,
        convert=case.convert,
        more=case.more,
        kind=kind,
        encode=encoded,
        **options,
    )
    (folder / "model.safetensors").unlink()
    return path


def native_backend(folder: Path) -> CpuNativeBackend:
    """The kernels in float32 with every matrix kept that they multiply as it is stored."""
    graph = declare(load_spec(folder), "float32")
    stored = stored_formats(graph, open_checkpoint(folder))
    return CpuNativeBackend(graph, "float32", BLOCK_SIZE, stored)


def load_stored(folder: Path, cache_dir: Path | None = None) -> PackedDecoder:
    """That backend with the folder's weights."""
    return load_for_backend(folder, native_backend(folder), cache_dir, lambda *_: None)


def expert_paths(folder: Path) -> list[str]:
    """The weights that hold all experts of a layer."""
    return [
        f"layers.{index}.mlp.{name}.weight"
        for index, layer in enumerate(load_spec(folder).layers)
        if isinstance(layer.mlp, MoeSpec)
        for name in ("gate_up", "down")
    ]


def dense_reference(folder: Path) -> GreedyReference:
    """The dense decoder with dequantised weights, to be asked within `int8_activations`."""
    weights = load_weights(folder, declare(load_spec(folder), "float32"))
    return GreedyReference(weights, MAX_LENGTH)


@contextmanager
def int8_activations(backend: Backend) -> Iterator[None]:
    """Rounds what products read as the kernels do beside matrices in blocks.

    Args:
        backend: Keeps experts so in all layers, and maybe the other matrices of all layers, but
            not routers; and maybe the head.
    """
    full_width = {1}
    for layer in backend.spec.layers:
        assert isinstance(layer.mlp, MoeSpec)
        full_width.add(layer.mlp.num_experts)
    if "head.weight" not in backend.stored_formats:
        full_width.add(backend.spec.vocab_size)

    def rounding(
        multiply: Callable[[jax.Array, Matrix], jax.Array],
    ) -> Callable[[jax.Array, Matrix], jax.Array]:
        def rounded(x: jax.Array, weight: Matrix) -> jax.Array:
            assert isinstance(weight, jax.Array)
            if weight.shape[0] in full_width:
                return multiply(x, weight)
            limit = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
            inverse = jnp.where(limit > 0, 127 / limit, 0)
            return multiply(jnp.round(x * inverse) * (limit / 127), weight)

        return rounded

    with pytest.MonkeyPatch.context() as patch:
        models = "engine_worker.compute.models"
        multiply = rounding(layers.multiply)
        patch.setattr(f"{models}.moe.multiply", multiply)
        if "layers.0.attention.qkv.weight" in backend.stored_formats:
            patch.setattr(f"{models}.layers.multiply", multiply)
        patch.setattr(f"{models}.decoder.matmul", rounding(layers.matmul))
        yield
