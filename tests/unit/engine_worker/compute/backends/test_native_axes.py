"""Every axis of a decoder on the native backend, held to the reference in plain XLA."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.recurrent.specs import MambaSpec
from engine_worker.compute.models.spec import (
    Activation,
    AltUpSpec,
    AttentionSpec,
    DecoderSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    QkNorm,
    QueryScale,
    RopeKind,
    RopeSpec,
    RouterScore,
    TokenInputSpec,
)
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.models import BLOCK_SIZE as EMBEDDING_BLOCK_SIZE
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.pooling import PoolingSpec
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import VOCAB_SIZE, GreedyReference, tiny_attention, tiny_spec

pytestmark = needs_native

MAX_MODEL_LEN = 64
PARTIAL = RopeSpec(theta=100.0, partial_factor=0.5)
LONG = RopeSpec(
    RopeKind.LONGROPE,
    theta=100.0,
    original_max_position_embeddings=16,
    attention_factor=1.3,
    short_factors=(1.0,) * 4,
    long_factors=(1.5, 2.0, 2.5, 3.0),
)


def spec_of(
    attention: AttentionSpec,
    mlp: MlpSpec | MoeSpec,
    windows: tuple[int | None, ...] = (None, 7),
    **changes: object,
) -> DecoderSpec:
    layers = tuple(LayerSpec(replace(attention, window=window), mlp) for window in windows)
    return replace(tiny_spec(), layers=layers, **changes)  # type: ignore[arg-type]


NATIVE = {
    "gemma": spec_of(
        replace(tiny_attention(softcap=2.0), rope=PARTIAL, qk_norm=QkNorm.PER_HEAD, scale=0.3),
        MlpSpec(48, Activation.GELU_TANH),
        norm_kind=NormKind.RMS_PLUS_ONE,
        norm_placement=NormPlacement.SANDWICH,
        embedding_multiplier=5.0,
        final_softcap=1.5,
        tied_head=False,
    ),
    "gpt2 with sinks": spec_of(
        replace(tiny_attention(), rope=None, qkv_bias=True, o_bias=True, sinks=True),
        MlpSpec(48, Activation.GELU, gated=False, bias=True),
        norm_kind=NormKind.LAYER,
        norm_bias=True,
        learned_positions=True,
        max_position_embeddings=MAX_MODEL_LEN,
    ),
    "qwen with a gate": spec_of(
        replace(tiny_attention(), rope=PARTIAL, qk_norm=QkNorm.PER_HEAD, output_gate=True),
        MlpSpec(48),
        tied_head=False,
    ),
    "llama4 attention": spec_of(
        replace(
            tiny_attention(),
            rope=replace(PARTIAL, interleaved=True),
            qk_norm=QkNorm.WEIGHTLESS,
            chunk=12,
            query_scale=QueryScale(0.5, 8, 1),
        ),
        MlpSpec(48),
    ),
    "deepseek attention": spec_of(
        replace(
            tiny_attention(),
            num_kv_heads=1,
            rope=RopeSpec(interleaved=True),
            latent=LatentSpec(10, 16, plain_dim=6, value_dim=12),
        ),
        MlpSpec(48),
        windows=(None, None),
        tied_head=False,
    ),
    "gemma4 attention": spec_of(
        replace(tiny_attention(), qk_norm=QkNorm.PER_HEAD, value_norm=True, is_value_of_key=True),
        MlpSpec(48),
        norm_placement=NormPlacement.SANDWICH,
    ),
    "olmo with multipliers": spec_of(
        replace(tiny_attention(), rope=LONG, qk_norm=QkNorm.FULL_WIDTH),
        MlpSpec(48, Activation.RELU),
        norm_placement=NormPlacement.POST,
        residual_multiplier=0.4,
        logits_multiplier=3.0,
        tied_head=False,
    ),
}
EXPERTS = {
    "qwen with a shared expert": spec_of(
        tiny_attention(), MoeSpec(6, 2, MlpSpec(24), shared=MlpSpec(40), shared_gate=True)
    ),
    "gpt-oss": spec_of(
        replace(tiny_attention(), sinks=True),
        MoeSpec(
            6,
            3,
            MlpSpec(24, Activation.QUICK_GELU, bias=True, clamp=1.5, up_offset=1.0),
            router_bias=True,
        ),
        norm_placement=NormPlacement.SANDWICH,
    ),
    "deepseek with groups": spec_of(
        tiny_attention(),
        MoeSpec(
            8,
            2,
            MlpSpec(20),
            score=RouterScore.SIGMOID,
            correction_bias=True,
            num_groups=4,
            num_groups_per_token=2,
            weights_multiplier=1.5,
            shared=MlpSpec(20),
        ),
        residual_multiplier=0.5,
    ),
    "llama4": spec_of(
        tiny_attention(),
        MoeSpec(
            5,
            2,
            MlpSpec(24),
            score=RouterScore.SIGMOID,
            weighs_input=True,
            normalize_weights=False,
            shared=MlpSpec(24),
        ),
    ),
    "nemotron with a latent": spec_of(
        tiny_attention(),
        MoeSpec(
            6,
            2,
            MlpSpec(24, Activation.RELU_SQUARED, gated=False),
            shared=MlpSpec(36, Activation.RELU_SQUARED, gated=False),
            latent_size=16,
        ),
    ),
    "gemma4 beside a dense MLP": spec_of(
        tiny_attention(),
        MoeSpec(6, 2, MlpSpec(32, Activation.GELU_TANH), shared=MlpSpec(32), is_beside_dense=True),
        norm_placement=NormPlacement.SANDWICH,
    ),
}
NATIVE |= EXPERTS
COHERE: dict[str, Any] = {"norm_kind": NormKind.LAYER, "norm_placement": NormPlacement.PARALLEL}
TURNED = replace(tiny_attention(), rope=replace(PARTIAL, interleaved=True))
OWN = replace(tiny_attention(), qk_norm=QkNorm.PER_HEAD)
NATIVE |= {
    "cohere": spec_of(TURNED, MlpSpec(48), **COHERE),
    "command r plus": spec_of(replace(TURNED, qk_norm=QkNorm.EACH_HEAD), MlpSpec(48), **COHERE),
    "gemma4 with shared keys": replace(
        tiny_spec(),
        layers=(
            LayerSpec(replace(OWN, window=7, value_norm=True), MlpSpec(48)),
            LayerSpec(replace(OWN, head_dim=16, value_norm=True), MlpSpec(48)),
            LayerSpec(replace(OWN, window=7, shared_from=0), MlpSpec(96)),
            LayerSpec(replace(OWN, head_dim=16, shared_from=1), MlpSpec(96)),
        ),
        norm_placement=NormPlacement.SANDWICH,
        token_inputs=TokenInputSpec(8, VOCAB_SIZE - 10, Activation.GELU_TANH),
        layer_scales=True,
    ),
    "gemma3n with several residuals": replace(
        tiny_spec(),
        layers=(
            LayerSpec(replace(OWN, window=7, value_norm=True), MlpSpec(48)),
            LayerSpec(replace(OWN, value_norm=True), MlpSpec(48)),
            LayerSpec(replace(OWN, window=7, shared_from=0), MlpSpec(48)),
        ),
        norm_placement=NormPlacement.SANDWICH,
        token_inputs=TokenInputSpec(8, VOCAB_SIZE, Activation.GELU_TANH),
        alt_up=AltUpSpec(3, 1, has_output_scale=True, laurel_rank=5),
    ),
    "falcon h1": replace(
        tiny_spec(),
        layers=(
            LayerSpec(MambaSpec(4, 6, 2, 8, 3), None, mixer_multiplier=0.6),
            LayerSpec(
                tiny_attention(),
                MlpSpec(48, gate_multiplier=0.7),
                is_beside=True,
                mixer_multiplier=1.4,
                mlp_multiplier=0.8,
            ),
        )
        * 2,
    ),
    "neighbours that share keys": replace(
        tiny_spec(),
        layers=(
            LayerSpec(tiny_attention(), MlpSpec(48)),
            *[LayerSpec(replace(tiny_attention(), shared_from=0), MlpSpec(48))] * 2,
        ),
    ),
}
PARTLY_NATIVE = {
    "a gate that is cut behind one norm": spec_of(TURNED, MlpSpec(48, gate_cutoff=0.2), **COHERE),
}

EVERYDAY = ("gemma", "gpt-oss", "qwen with a gate", "deepseek attention")
EVERYDAY_TYPES = (("gpt-oss", "bfloat16"),)


def strong_weights(spec: DecoderSpec) -> DecoderWeights:
    """Weights of which every single one matters: norms far from one, biases far from nothing."""
    graph = declare(spec, jnp.float32)
    generator = np.random.default_rng(2)
    is_plus_one = spec.norm_kind is NormKind.RMS_PLUS_ONE
    leaves = []
    for parameter in graph.parameters:
        is_norm = parameter.path.endswith("norm.weight") and not is_plus_one
        values = 0.3 * generator.standard_normal(parameter.shape, np.float32)
        leaves.append(jnp.asarray(values + np.float32(is_norm)))
    return DecoderWeights(graph, tuple(leaves))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.long)
        for name in (*NATIVE, *PARTLY_NATIVE)
    ],
)
def test_the_kernels_compute_what_the_reference_does_or_leave_it_to_xla(name: str) -> None:
    weights = strong_weights((NATIVE | PARTLY_NATIVE)[name])
    decoder = packed(weights, "cpu_native", "float32")
    places = {kind.value: place.backend for kind, place in decoder.backend.placements.items()}
    assert (set(places.values()) == {"cpu_native"}) is (name in NATIVE)
    assert (places["embedding"], places["head"]) == ("cpu_native", "cpu_native")
    runner = JaxModelRunner.create(
        decoder,
        num_blocks=8,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=1,
        max_num_batched_tokens=16,
    )
    prompt = [int(token_id) for token_id in np.random.default_rng(1).integers(0, VOCAB_SIZE, 29)]
    output = generate(runner, RunnerRequest(0, prompt, list(range(8))), 30)
    assert output == GreedyReference(weights, MAX_MODEL_LEN).continue_greedily(prompt, 30)
    assert len(set(output)) > 3


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["gemma", "deepseek attention", "falcon h1", "neighbours that share keys"]
)
def test_what_follows_a_cached_beginning_has_the_bits_that_it_has_without(name: str) -> None:
    """Of layers behind a window, of latents, of states, and of those that share their pages."""
    runner = JaxModelRunner.create(
        packed(strong_weights(NATIVE[name]), "cpu_native", "bfloat16"),
        num_blocks=12,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=2,
        max_num_batched_tokens=16,
    )
    prompt = [int(token_id) for token_id in np.random.default_rng(1).integers(0, VOCAB_SIZE, 29)]
    own, others = [3, 0, 4, 1, 2], [3, 0, 9, 7, 8]
    expected = list(generate(runner, RunnerRequest(0, prompt, own), 8))
    hit = RunnerRequest(1, prompt, others)
    begin(runner, hit)
    hit.num_computed = 16
    while len(hit.output) < 8:
        step(runner, [hit], max_tokens=5)
    assert hit.output == expected
    for array in map(np.asarray, jax.tree.leaves(runner.state.cache)):
        assert array[own[2:4]].any()
        np.testing.assert_array_equal(array[others[2:4]], array[own[2:4]])
    runner.close()


@pytest.mark.parametrize(
    ("name", "weight_type", "tolerance"),
    [
        pytest.param(
            name,
            weight_type,
            tolerance,
            marks=() if (name, weight_type) in EVERYDAY_TYPES else pytest.mark.long,
        )
        for name in NATIVE
        for weight_type, tolerance in (("bfloat16", 0.05), ("int8", 0.12))
    ],
)
def test_other_types_of_weights_stay_near_float32(
    name: str, weight_type: str, tolerance: float
) -> None:
    weights = strong_weights(NATIVE[name])
    prompt = [int(token_id) for token_id in np.random.default_rng(1).integers(0, VOCAB_SIZE, 29)]
    exact, rounded = (
        np.asarray(
            Embedder(DecoderModel(decoder), PoolingSpec("mean"), MAX_MODEL_LEN).embed([prompt])
        )
        for decoder in (
            packed(weights, "xla", "float32", EMBEDDING_BLOCK_SIZE),
            packed(weights, "cpu_native", weight_type, EMBEDDING_BLOCK_SIZE),
        )
    )
    distance = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < distance < tolerance
