"""Which blocks the kernels compute, and what of a decoder's description reaches them."""

import math
from dataclasses import replace

import pytest

from engine_worker.compute.backends.cpu_native.calls import (
    AttentionConfig,
    MlpConfig,
    page_shapes,
)
from engine_worker.compute.backends.cpu_native.coverage import uncovered
from engine_worker.compute.backends.cpu_native.packing import WEIGHT_TYPES
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.spec import (
    Activation,
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
    RopeSpec,
)

ATTENTION = AttentionSpec(8, 2, 64, 0.125, RopeSpec())
MLP = MlpSpec(512)
LAYER = LayerSpec(ATTENTION, MLP)
SPEC = DecoderSpec("TestForCausalLM", 1000, 256, (LAYER,), 2048, 1e-5, tied_head=True)


def reason(
    spec: DecoderSpec = SPEC,
    layer: LayerSpec = LAYER,
    block: str = "attention",
    weight_type: str = "bfloat16",
    cache_type: str = "bfloat16",
    block_size: int = 32,
) -> str:
    return uncovered(spec, layer, block, weight_type, cache_type, block_size) or ""


@pytest.mark.parametrize("block", ["embedding", "attention", "mlp", "head"])
@pytest.mark.parametrize("weight_type", ["float32", "bfloat16", "int8", "int4"])
def test_a_usual_decoder_is_covered_whole(block: str, weight_type: str) -> None:
    assert not reason(block=block, weight_type=weight_type)


def test_what_is_not_covered_is_named() -> None:
    def attention(**changes: object) -> LayerSpec:
        return LayerSpec(replace(ATTENTION, **changes), MLP)  # type: ignore[arg-type]

    assert "int3 weights" in reason(weight_type="int3")
    assert "a cache of float16" in reason(cache_type="float16")
    assert "not 514" in reason(layer=attention(head_dim=514))
    assert "not 33" in reason(layer=attention(head_dim=33))
    assert "256 heads share" in reason(layer=attention(num_heads=600))
    made_of_keys = attention(is_value_of_key=True, qk_norm=QkNorm.FULL_WIDTH)
    assert "one norm for all heads" in reason(layer=made_of_keys)
    per_head = attention(qk_norm=QkNorm.PER_HEAD)
    assert "have a LayerNorm" in reason(replace(SPEC, norm_kind=NormKind.LAYER), per_head)
    assert "at most 65536, not 131072" in reason(block_size=2**17)
    assert "an even number of tokens" in reason(block_size=33)
    wide = LayerSpec(ATTENTION, MlpSpec(70_000))
    assert "65536 inputs" in reason(layer=wide, block="mlp", weight_type="int8")
    assert not reason(layer=wide, block="mlp", weight_type="int4")
    for mlp, named in (
        (MlpSpec(512, gated=False, gate_multiplier=0.5), "nothing to multiply"),
        (MlpSpec(512, gate_cutoff=1.0), "cuts the gate by its deviation"),
        (MlpSpec(512, clamp=0.0), "clamped at more than zero"),
        (MlpSpec(512, gated=False, up_offset=1.0), "no up projection"),
    ):
        assert named in reason(layer=LayerSpec(ATTENTION, mlp), block="mlp")
        for experts in (MoeSpec(8, 2, mlp), MoeSpec(8, 2, MLP, shared=mlp)):
            assert named in reason(layer=LayerSpec(ATTENTION, experts), block="mlp")


def test_latents_are_covered_but_for_what_no_kernel_has() -> None:
    latent = LatentSpec(None, 512, plain_dim=128, value_dim=128)
    attention = AttentionSpec(128, 1, 64, 0.1, RopeSpec(interleaved=True), latent=latent)

    def of(cache_type: str = "bfloat16", block_size: int = 32, **changes: object) -> str:
        layer = LayerSpec(replace(attention, **changes), MLP)  # type: ignore[arg-type]
        return reason(layer=layer, cache_type=cache_type, block_size=block_size)

    assert not of()
    assert not of("float32", qkv_bias=True, query_scale=QueryScale(0.1, 16))
    assert "latents of int8" in of("int8")
    assert "even number of tokens" in of(block_size=33)
    assert "an even width" in of(head_dim=63)
    assert "at most 1024 wide together" in of(head_dim=514)
    assert "at most 256 heads" in of(num_heads=257)
    for changes in ({"window": 7}, {"softcap": 2.0}, {"sinks": True}):
        assert "soft caps or sinks over latents" in of(**changes)


def test_recurrent_layers_are_covered_whose_convolutions_are_short() -> None:
    for size, expected in ((16, ""), (17, "the kernels convolve at most 16 tokens")):
        layer = LayerSpec(ShortConvSpec(32, size), MLP)
        spec = replace(SPEC, layers=(LAYER, layer))
        assert reason(spec, layer, "recurrent") == expected


def test_experts_are_covered_with_all_that_stands_round_them() -> None:
    gpt_oss = MlpSpec(512, Activation.QUICK_GELU, bias=True, clamp=7.0, up_offset=1.0)
    for experts in (
        MoeSpec(8, 2, gpt_oss, shared=MLP, shared_gate=True, router_bias=True, num_groups=2),
        MoeSpec(8, 2, MLP, weighs_input=True),
        MoeSpec(8, 2, MLP, latent_size=64),
        MoeSpec(8, 2, MLP, shared=MLP, is_beside_dense=True),
    ):
        for weight_type in WEIGHT_TYPES:
            layer = LayerSpec(ATTENTION, experts)
            assert not reason(layer=layer, block="mlp", weight_type=weight_type)
    crowd = MoeSpec(70_000, 2, MLP)
    assert "at most 65536 experts" in reason(layer=LayerSpec(ATTENTION, crowd), block="mlp")
    wide = LayerSpec(ATTENTION, MoeSpec(8, 2, MLP, shared=MlpSpec(70_000)))
    assert "65536 inputs" in reason(layer=wide, block="mlp", weight_type="int8")


def test_placements_of_norms_that_no_kernel_has_are_named() -> None:
    behind = replace(SPEC, norm_placement=NormPlacement.POST, norm_kind=NormKind.LAYER)
    assert "LayerNorm stands behind" in reason(behind, block="mlp")
    assert not reason(behind, block="head")


@pytest.mark.parametrize("kind", NormKind)
def test_attention_and_mlp_behind_one_norm_are_covered_together(kind: NormKind) -> None:
    spec = replace(SPEC, norm_placement=NormPlacement.PARALLEL, norm_kind=kind)
    assert not reason(spec)
    assert not reason(spec, block="mlp")
    for layer, named in (
        (LayerSpec(replace(ATTENTION, head_dim=33), MLP), "not 33"),
        (LayerSpec(ATTENTION, MlpSpec(512, gate_cutoff=1.0)), "cuts the gate"),
    ):
        for block in ("attention", "mlp"):
            assert named in reason(spec, layer, block)
    experts = LayerSpec(ATTENTION, MoeSpec(8, 2, MLP))
    assert "experts read the same norm" in reason(spec, experts)
    assert not reason(spec, experts, "mlp")
    config = MlpConfig.of(spec, LAYER, weight_type="int8")
    assert (config.norm, config.is_parallel, config.has_norm_bias) == ("none", True, False)
    assert not MlpConfig.of(SPEC, LAYER, weight_type="int8").is_parallel


def test_norms_of_each_head_are_covered_where_they_are_layer_norms() -> None:
    layer = LayerSpec(replace(ATTENTION, qk_norm=QkNorm.EACH_HEAD), MLP)
    spec = replace(SPEC, norm_kind=NormKind.LAYER)
    assert not reason(spec, layer)
    assert "with a bias" in reason(replace(spec, norm_bias=True), layer)
    assert not reason(replace(spec, norm_bias=True))
    assert "an RMS norm with weights of each head" in reason(layer=layer)


def test_layers_that_share_pages_are_covered_together() -> None:
    """Their pages lie as those who compute them all have them."""
    reads = LayerSpec(replace(ATTENTION, shared_from=0), MLP)
    spec = replace(SPEC, layers=(LAYER, reads))
    for layer in spec.layers:
        for block in ("attention", "mlp"):
            assert not reason(spec, layer, block)
    for wrong, named, weight_type in (
        (replace(reads, mixer=replace(reads.attention, num_heads=600)), "256 heads", "bfloat16"),
        (replace(reads, mlp=MlpSpec(70_000)), "65536 inputs", "int8"),
    ):
        spec = replace(SPEC, layers=(LAYER, wrong))
        for layer in spec.layers:
            assert named in reason(spec, layer, weight_type=weight_type)
        assert not reason(spec, LAYER, "mlp", weight_type=weight_type)
    config = AttentionConfig.of(spec, reads, weight_type="int8", cache_type="float32")
    assert config.is_reader
    of_owner = AttentionConfig.of(spec, LAYER, weight_type="int8", cache_type="float32")
    assert not of_owner.is_reader


def test_a_decoders_description_reaches_the_kernels() -> None:
    attention = replace(
        ATTENTION,
        rope=RopeSpec(interleaved=True),
        window=100,
        chunk=64,
        softcap=30.0,
        query_scale=QueryScale(0.1, 16),
        output_gate=True,
        value_norm=True,
        is_value_of_key=True,
        qkv_bias=True,
        qk_norm=QkNorm.PER_HEAD,
        sinks=True,
    )
    mlp = MlpSpec(
        300, Activation.QUICK_GELU, bias=True, clamp=7.0, up_offset=1.0, gate_multiplier=0.5
    )
    layer = LayerSpec(attention, mlp)
    spec = replace(SPEC, norm_placement=NormPlacement.SANDWICH, residual_multiplier=0.5)
    assert AttentionConfig.of(spec, layer, weight_type="int8", cache_type="float32") == (
        AttentionConfig(
            8,
            2,
            64,
            0.125,
            1e-5,
            weight_type="int8",
            cache_type="float32",
            window=100,
            chunk=64,
            softcap=30.0,
            multiplier=0.5,
            query_scale=QueryScale(0.1, 16),
            has_output_gate=True,
            is_interleaved=True,
            is_value_of_key=True,
            has_value_norm=True,
            qk_norm=QkNorm.PER_HEAD,
            has_qkv_bias=True,
            has_post_norm=True,
            has_sinks=True,
        )
    )
    assert MlpConfig.of(spec, layer, weight_type="int4", group_size=32) == MlpConfig(
        300,
        1e-5,
        weight_type="int4",
        group_size=32,
        activation=Activation.QUICK_GELU,
        multiplier=0.5,
        has_gate_up_bias=True,
        has_down_bias=True,
        has_post_norm=True,
        clamp=7.0,
        up_offset=1.0,
        gate_multiplier=0.5,
    )
    plain = LayerSpec(ATTENTION, MlpSpec(300, gated=False))
    assert not MlpConfig.of(spec, plain, weight_type="int8").is_gated
    after = replace(SPEC, norm_placement=NormPlacement.POST)
    assert MlpConfig.of(after, LAYER, weight_type="int8").norm == "none"


@pytest.mark.parametrize(
    ("cache_type", "token_bytes"), [("int8", 64 + 4), ("bfloat16", 2 * 64), ("float32", 4 * 64)]
)
def test_pages_hold_every_number_once_and_int8_a_scale_a_token(
    cache_type: str, token_bytes: int
) -> None:
    for shape, dtype in page_shapes(7, 2, 64, 16, cache_type):
        assert math.prod(shape) * dtype.itemsize == 7 * 2 * 16 * token_bytes
