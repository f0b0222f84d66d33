"""Matrices of blocks that XLA computes are packed for the kernels, and multiplied by them."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.base import BlockKind
from engine_worker.compute.backends.choice import describe, identity_of
from engine_worker.compute.backends.cpu_native import coverage, products
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.backends.cpu_native.products import NativeProducts, product_paths
from engine_worker.compute.models.decoder import DecoderGraph, declare
from engine_worker.compute.models.spec import (
    AttentionSpec,
    LatentSpec,
    MlpSpec,
    MoeSpec,
    NormPlacement,
    QkNorm,
    RopeSpec,
)
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.tiny_decoder import tiny_hybrid_spec, tiny_spec, tiny_weights

pytestmark = needs_native

RECURRENT = {
    f"layers.{layer}.recurrent.{name}.weight"
    for layer in (0, 2, 4)
    for name in ("in_proj", "out_proj")
}


def backend_of(graph: DecoderGraph, weight_type: str = "bfloat16") -> CpuNativeBackend:
    return CpuNativeBackend(graph, weight_type, 8)


def test_the_projections_of_recurrent_layers_are_multiplied_by_the_kernels() -> None:
    backend = backend_of(declare(tiny_hybrid_spec(), "bfloat16"))
    assert backend.product_paths == RECURRENT
    parts = {weight.name: weight.parts for weight in backend.packing.weights}
    assert {part.dtype.name for path in RECURRENT for part in parts[path]} == {"uint8"}
    # Its other weights are the modules' as they are.
    assert parts["layers.2.recurrent.conv.weight"][0].dtype == jnp.bfloat16
    assert "with products" in backend.packing.layout
    assert describe(backend) == "cpu_native"
    assert "recurrent cpu_native" in identity_of(backend, deterministic=False)


def test_a_decoder_that_is_covered_whole_has_no_other_products() -> None:
    backend = backend_of(declare(tiny_spec(), "bfloat16"))
    assert not backend.product_paths
    assert "with products" not in backend.packing.layout
    assert "beside" not in identity_of(backend, deterministic=False)


def test_only_blocks_without_a_kernel_have_such_matrices() -> None:
    spec = tiny_spec()
    experts = replace(spec.layers[0], mlp=MoeSpec(6, 2, MlpSpec(24), shared=MlpSpec(16)))
    graph = declare(replace(spec, layers=(experts, spec.layers[0])), "float32")

    def paths(*native: BlockKind) -> set[str]:
        return set(product_paths(graph, "float32", lambda kind, layer: kind in native))

    attention = {f"layers.{i}.attention.{name}.weight" for i in (0, 1) for name in ("qkv", "o")}
    mlp = {f"layers.1.mlp.{name}.weight" for name in ("gate_up", "down")}
    assert paths() == attention | mlp
    assert paths(BlockKind.MLP) == attention
    assert paths(BlockKind.ATTENTION) == mlp
    assert not paths(BlockKind.ATTENTION, BlockKind.MLP)


def test_int8_leaves_products_to_xla_that_are_wider_than_its_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "MAX_INT8_INPUTS", 31)
    graph = declare(tiny_hybrid_spec(), "float32")
    narrow = product_paths(graph, "int8", lambda kind, layer: kind is not BlockKind.RECURRENT)
    assert narrow < RECURRENT
    assert set(product_paths(graph, "int4", lambda kind, _: kind is not BlockKind.RECURRENT)) == (
        RECURRENT
    )


def test_latent_attention_and_parallel_layers_have_them_too() -> None:
    cut = replace(tiny_spec().layers[0], mlp=MlpSpec(48, gate_cutoff=1.0))
    spec = replace(tiny_spec(), norm_placement=NormPlacement.PARALLEL, layers=(cut,))
    parallel = backend_of(declare(spec, "float32"))
    assert {path.split(".")[2] for path in parallel.product_paths} == {"attention", "mlp"}
    latent = LatentSpec(q_rank=16, kv_rank=24, plain_dim=12, value_dim=10)
    attention = AttentionSpec(4, 1, 8, 0.2, RopeSpec(), latent=latent)
    layer = replace(tiny_spec().layers[0], mixer=attention)
    graph = declare(replace(tiny_spec(), layers=(layer,)), "float32")
    names = {path.split(".")[3] for path in backend_of(graph).product_paths}
    assert names == {"q_a", "q", "kv_a", "o"}


def test_a_row_alone_is_computed_alone_where_xla_multiplies_by_no_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XLA converts a whole matrix of bfloat16 to multiply one row by it."""
    monkeypatch.setattr(coverage, "MAX_EXPERTS", 5)
    layer = tiny_spec().layers[0]
    normed = replace(layer, mixer=replace(layer.attention, qk_norm=QkNorm.EACH_HEAD))
    experts = replace(normed, mlp=MoeSpec(6, 2, MlpSpec(24)))
    for weight_type, of_experts in (("bfloat16", 2), ("int8", 2), ("float32", 1)):
        dtype = "bfloat16" if weight_type == "bfloat16" else "float32"
        for layers, expected in (((normed, layer), 1), ((normed, experts), of_experts)):
            backend = backend_of(declare(replace(tiny_spec(), layers=layers), dtype), weight_type)
            assert backend.placements[BlockKind.ATTENTION].reason
            assert backend.min_rows == expected


@pytest.mark.parametrize("weight_type", ["float32", "bfloat16", "int8", "int4"])
def test_a_product_is_that_of_the_matrix_and_leaves_padding_at_the_end(weight_type: str) -> None:
    weights = tiny_weights(spec=tiny_hybrid_spec())
    decoder = packed(weights, "cpu_native", weight_type)
    path = "layers.2.recurrent.in_proj.weight"
    index, parameter = next(
        (i, one) for i, one in enumerate(weights.graph.parameters) if one.path == path
    )
    leaf = next(
        leaf
        for leaf, weight in zip(decoder.leaves, decoder.backend.packing.weights, strict=True)
        if weight.name == path
    )
    native = NativeProducts({path: leaf}, weight_type=weight_type, group_size=64, stored={})
    native.is_token = jnp.arange(9) < 7
    x = np.random.default_rng(0).standard_normal((9, parameter.shape[1]), np.float32)
    found = np.asarray(jax.jit(native.matrix(parameter).product)(jnp.asarray(x)))
    expected = x @ np.asarray(weights.leaves[index]).T
    scale = np.std(expected)
    most = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05, "int4": 0.5}[weight_type]
    np.testing.assert_allclose(found[:7], expected[:7], rtol=0, atol=most * scale)
    assert not found[7:].any()


def test_xla_gets_no_plain_matrix_of_such_a_product() -> None:
    weights = tiny_weights(spec=tiny_hybrid_spec())
    decoder = packed(weights, "cpu_native", "bfloat16")
    with mock.patch.object(NativeProducts, "matrix", return_value=None) as matrix:
        decoder.backend.bind(decoder.leaves)
    assert {call.args[0].path for call in matrix.call_args_list} == RECURRENT
