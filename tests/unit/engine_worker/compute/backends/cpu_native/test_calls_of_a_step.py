"""Which blocks of a decoder are one call of the library, and whose pages they get."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from engine_worker.compute.backends.base import StepTokens, forward
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.kv_layout import KvCache, LayerPages
from engine_worker.compute.models.spec import (
    Activation,
    AltUpSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormKind,
    NormPlacement,
    TokenInputSpec,
)
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.tiny_decoder import VOCAB_SIZE, tiny_attention, tiny_spec, tiny_weights

pytestmark = needs_native

OWN = LayerSpec(tiny_attention(), MlpSpec(48))
WINDOW = LayerSpec(tiny_attention(20), MlpSpec(48))


def reads(layer: LayerSpec, owner: int) -> LayerSpec:
    return replace(layer, mixer=replace(layer.attention, shared_from=owner))


def calls_of(spec: DecoderSpec, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Each call's blocks of a step that is traced; those of attention with layer/group of pages."""
    decoder = packed(tiny_weights(spec=spec), "cpu_native", "float32")
    layout = decoder.backend.kv_layout(num_blocks=4, block_size=8)
    found: list[list[str]] = []
    owners: dict[int, int] = {}

    def run_blocks(
        x: jax.Array, _: Any, __: Any, blocks: Sequence[calls.Attention | calls.Mlp]
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
        named, pages = [], []
        for block in blocks:
            if isinstance(block, calls.Mlp):
                named.append("parallel mlp" if block.config.is_parallel else "mlp")
                continue
            kind = "reader" if block.config.is_reader else "attention"
            named.append(f"{kind} {owners[id(block.keys)]}/{block.group}")
            pages.append((block.keys, block.values))
        found.append(named)
        return x, tuple(pages)

    def trace(leaves: Any, cache: KvCache, step: StepTokens) -> tuple[jax.Array, KvCache]:
        owners.update(
            {id(one.keys): i for i, one in enumerate(cache) if isinstance(one, LayerPages)}
        )
        return forward(decoder.backend.bind(leaves), spec, cache, step)

    monkeypatch.setattr(calls, "run_blocks", run_blocks)
    zeros = jnp.zeros((2, 1), jnp.int32)
    tables = (jnp.zeros((2, 1), jnp.int32),) * len(layout.num_blocks)
    row = zeros[:, 0]
    step = StepTokens(zeros, zeros, zeros == 0, row + 1, tables, row, row, layout)
    cache = layout.abstract()
    _, after = jax.eval_shape(
        lambda leaves, cache: trace(leaves, cache, step), decoder.leaves, cache
    )
    assert jax.tree.map(lambda one: one.shape, after) == jax.tree.map(lambda one: one.shape, cache)
    return found


def test_a_layer_that_reads_the_pages_of_the_one_before_it_is_in_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(tiny_spec(), layers=(WINDOW, OWN, reads(OWN, 1), reads(WINDOW, 0), OWN))
    assert calls_of(spec, monkeypatch) == [
        ["attention 0/1", "mlp", "attention 1/0", "mlp"],
        ["reader 1/0", "mlp", "reader 0/1", "mlp", "attention 4/0", "mlp"],
    ]


def test_what_stands_between_layers_ends_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = TokenInputSpec(8, VOCAB_SIZE, Activation.GELU_TANH)
    spec = replace(tiny_spec(), layers=(OWN, OWN, reads(OWN, 0)), token_inputs=inputs)
    layers = [["attention 0/0", "mlp"], ["attention 1/0", "mlp"], ["reader 0/0", "mlp"]]
    assert calls_of(spec, monkeypatch) == layers
    alt_up = AltUpSpec(2, 0, has_output_scale=False, laurel_rank=3)
    apart = [[block] for blocks in layers for block in blocks]
    assert calls_of(replace(spec, alt_up=alt_up), monkeypatch) == apart
    cut = replace(OWN, mlp=MlpSpec(48, gate_cutoff=1.0))
    spec = replace(spec, layers=(OWN, cut, reads(OWN, 0)), alt_up=alt_up)
    assert calls_of(spec, monkeypatch) == [*apart[:3], *apart[4:]]


def test_mixers_side_by_side_are_calls_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = replace(OWN, is_beside=True)
    alone = replace(OWN, mlp=None)
    spec = replace(tiny_spec(), layers=(OWN, alone, beside, OWN))
    assert calls_of(spec, monkeypatch) == [
        ["attention 0/0", "mlp"],
        ["attention 1/0"],
        ["attention 2/0"],
        ["mlp", "attention 3/0", "mlp"],
    ]


@pytest.mark.parametrize("kind", [NormKind.LAYER, NormKind.RMS])
def test_layers_whose_blocks_stand_side_by_side_are_one_call(
    kind: NormKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(
        tiny_spec(),
        layers=(OWN, OWN),
        norm_kind=kind,
        norm_placement=NormPlacement.PARALLEL,
    )
    expected = ["attention 0/0", "parallel mlp", "attention 1/0", "parallel mlp"]
    assert calls_of(spec, monkeypatch) == [expected]


@pytest.mark.parametrize("weight_type", ["float32", "bfloat16", "int8"])
def test_matrices_between_layers_are_xlas_which_takes_two_rows_of_bfloat16(
    weight_type: str,
) -> None:
    inputs = TokenInputSpec(8, VOCAB_SIZE, Activation.GELU_TANH)
    for token_inputs in (None, inputs):
        spec = replace(tiny_spec(), token_inputs=token_inputs)
        backend = packed(tiny_weights(spec=spec), "cpu_native", weight_type).backend
        is_whole = token_inputs is None or weight_type == "float32"
        assert backend.skips_padding
        assert backend.min_rows == (1 if is_whole else 2)
        assert backend.is_batch_invariant == is_whole
