"""Refuses, by name, every value of a `DecoderSpec` that the decoder does not compute."""

from collections.abc import Iterator

from engine_worker.compute.models.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    MlpSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    QkNorm,
    RopeKind,
    RopeSpec,
)
from engine_worker.compute.sampling.filters import MAX_VOCAB_SIZE
from engine_worker.errors import UnsupportedFeatureError

SUPPORTED_ROPE_KINDS = (RopeKind.DEFAULT, RopeKind.LINEAR, RopeKind.LLAMA3, RopeKind.YARN)


def check_supported(spec: DecoderSpec) -> None:
    """Raises when the decoder would compute something else than the spec says.

    Args:
        spec: The decoder to be declared.

    Raises:
        UnsupportedFeatureError: Names the architecture and each value that is not implemented.
    """
    found = dict.fromkeys(_unsupported(spec))
    if found:
        raise UnsupportedFeatureError(f"{spec.architecture}: not supported yet: {'; '.join(found)}")


def _unsupported(spec: DecoderSpec) -> Iterator[str]:
    if spec.norm_kind is not NormKind.RMS:
        yield f"norm {spec.norm_kind}"
    if spec.norm_placement is not NormPlacement.PRE:
        yield f"norm placement {spec.norm_placement}"
    for name in ("embedding_multiplier", "residual_multiplier", "logits_multiplier"):
        value = getattr(spec, name)
        if value != 1.0:
            yield f"{name.replace('_', ' ')} {value}"
    if spec.vocab_size > MAX_VOCAB_SIZE:
        yield f"vocabulary of {spec.vocab_size} tokens (at most {MAX_VOCAB_SIZE})"
    if spec.final_softcap is not None:
        yield f"logit softcap {spec.final_softcap}"
    for layer in spec.layers:
        yield from _unsupported_attention(layer.attention)
        if isinstance(layer.mlp, MoeSpec):
            yield f"mixture of {layer.mlp.num_experts} experts"
        else:
            yield from _unsupported_mlp(layer.mlp)


def _unsupported_attention(attention: AttentionSpec) -> Iterator[str]:
    if attention.qk_norm is QkNorm.FULL_WIDTH:
        yield f"query/key norm {attention.qk_norm}"
    if attention.sinks:
        yield "attention sinks"
    if attention.rope is not None:
        yield from _unsupported_rope(attention.rope)


def _unsupported_rope(rope: RopeSpec) -> Iterator[str]:
    if rope.kind not in SUPPORTED_ROPE_KINDS:
        yield f"rope type {rope.kind}"
    if rope.partial_factor != 1.0:
        yield f"partial rotary factor {rope.partial_factor}"
    if rope.interleaved:
        yield "interleaved rotary embedding"


def _unsupported_mlp(mlp: MlpSpec) -> Iterator[str]:
    if mlp.activation is not Activation.SILU:
        yield f"activation {mlp.activation}"
    if not mlp.gated:
        yield "MLP without a gate"
    if mlp.clamp is not None:
        yield f"clamped MLP {mlp.clamp}"
