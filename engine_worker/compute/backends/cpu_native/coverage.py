"""Which blocks the kernels compute, and why they leave the others to XLA."""

from typing import Final

from engine_worker.compute.backends.cpu_native.calls import (
    CACHE_TYPES,
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_KEY_DIM,
    MAX_LATENT_HEADS,
    MAX_TAPS,
)
from engine_worker.compute.backends.cpu_native.packing import WEIGHT_TYPES
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormKind,
    NormPlacement,
    QkNorm,
)

MAX_INT8_INPUTS: Final = 65536
_TOO_WIDE: Final = f"int8 products have at most {MAX_INT8_INPUTS} inputs"


def uncovered(
    spec: DecoderSpec,
    layer: LayerSpec,
    block: str,
    weight_type: str,
    cache_type: str,
    block_size: int,
) -> str | None:
    """Why the kernels don't compute a block; None where they do.

    Args:
        spec: The decoder.
        layer: Of the block; whichever for the embedding and the head.
        block: `embedding`, `attention`, `recurrent`, `mlp` or `head`.
        weight_type: Of its matrices.
        cache_type: Of keys and values.
        block_size: Tokens of a cache block.
    """
    if weight_type not in WEIGHT_TYPES:
        return f"no kernel multiplies {weight_type} weights"
    if weight_type == "int8" and _widest(spec, layer) > MAX_INT8_INPUTS:
        return _TOO_WIDE
    if block in {"embedding", "head"}:
        return None
    if block == "recurrent":
        # Norms, gates and what is added to the residual are left to XLA.
        covered = are_recurrent_layers_covered(spec)
        return None if covered else f"the kernels convolve at most {MAX_TAPS} tokens"
    if block == "mlp" and isinstance(layer.mlp, MoeSpec):
        # Norms, routing and what is added to the residual are left to XLA.
        return _uncovered_experts(layer.mlp)
    if block == "attention" or spec.placement_in(layer) is NormPlacement.PARALLEL:
        reasons = (
            _uncovered_attention_block(spec, other, weight_type, cache_type, block_size)
            for other in _sharing_pages(spec, layer)
        )
        return next((reason for reason in reasons if reason is not None), None)
    assert isinstance(layer.mlp, MlpSpec), "a layer with an MLP"
    return _uncovered_norm(spec, layer) or _uncovered_mlp(layer.mlp)


def _sharing_pages(spec: DecoderSpec, layer: LayerSpec) -> list[LayerSpec]:
    """Layers whose attention is native together: all, where some read the pages of another one."""
    attending = [other for other in spec.layers if other.is_attention]
    does_share = any(other.attention.shared_from is not None for other in attending)
    return attending if does_share else [layer]


def _uncovered_attention_block(
    spec: DecoderSpec, layer: LayerSpec, weight_type: str, cache_type: str, block_size: int
) -> str | None:
    """Of an attention block, and of the MLP that reads the same norm, if one does."""
    if weight_type == "int8" and _widest(spec, layer) > MAX_INT8_INPUTS:
        return _TOO_WIDE
    if spec.alt_up is not None and spec.norm_kind is not NormKind.RMS:
        return "another norm than RMS is read beside attention"
    if spec.placement_in(layer) is NormPlacement.PARALLEL and layer.mlp is not None:
        if not isinstance(layer.mlp, MlpSpec):
            return "experts read the same norm as attention"
        reason = _uncovered_mlp(layer.mlp)
        if reason is not None:
            return reason
    return _uncovered_norm(spec, layer) or _uncovered_attention(
        spec, layer.attention, cache_type, block_size
    )


def _uncovered_norm(spec: DecoderSpec, layer: LayerSpec) -> str | None:
    is_before = spec.placement_in(layer) in {NormPlacement.PRE, NormPlacement.PARALLEL}
    is_behind = spec.norm_kind is NormKind.LAYER and not is_before
    return "LayerNorm stands behind the block" if is_behind else None


def are_recurrent_layers_covered(spec: DecoderSpec) -> bool:
    """Whether the kernels compute what goes from token to token in all of a decoder's layers."""
    mixers = [layer.mixer for layer in spec.layers if not isinstance(layer.mixer, AttentionSpec)]
    return all(mixer.kernel_size <= MAX_TAPS for mixer in mixers)


def _uncovered_mlp(mlp: MlpSpec) -> str | None:
    if mlp.clamp is not None and (mlp.clamp <= 0.0 or not mlp.gated):
        return "a gate is clamped at more than zero"
    if mlp.up_offset and not mlp.gated:
        return "without a gate there is no up projection to add to"
    if mlp.gate_cutoff is not None:
        return "no kernel cuts the gate by its deviation"
    if mlp.gate_multiplier != 1.0 and not mlp.gated:
        return "without a gate there is nothing to multiply"
    return None


def _uncovered_experts(moe: MoeSpec) -> str | None:
    if moe.num_experts > MAX_EXPERTS:
        return f"there are at most {MAX_EXPERTS} experts, not {moe.num_experts}"
    reasons = (_uncovered_mlp(mlp) for mlp in (moe.expert, moe.shared) if mlp is not None)
    return next((reason for reason in reasons if reason is not None), None)


def _widest(spec: DecoderSpec, layer: LayerSpec) -> int:
    mlps = (layer.mlp.expert, layer.mlp.shared) if isinstance(layer.mlp, MoeSpec) else (layer.mlp,)
    inner = max((mlp.intermediate_size for mlp in mlps if mlp is not None), default=0)
    heads = layer.attention.q_size if layer.is_attention else 0
    return max(spec.hidden_size, heads, inner)


def _uncovered_latents(attention: AttentionSpec, latent: LatentSpec, cache_type: str) -> str | None:
    # Norms, the products of each head and what is added to the residual are left to XLA.
    if cache_type == "int8":
        return "no kernel reads latents of int8"
    if latent.kv_rank % 2 or attention.head_dim % 2:
        return "latents and rotated keys have an even width"
    if latent.kv_rank + attention.head_dim > MAX_KEY_DIM:
        return f"a latent and a rotated key are at most {MAX_KEY_DIM} wide together"
    if attention.num_heads > MAX_LATENT_HEADS:
        return f"at most {MAX_LATENT_HEADS} heads read latents"
    if attention.window is not None or attention.softcap is not None or attention.sinks:
        return "no kernel has windows, soft caps or sinks over latents"
    return None


def _uncovered_attention(
    spec: DecoderSpec, attention: AttentionSpec, cache_type: str, block_size: int
) -> str | None:
    if cache_type not in CACHE_TYPES:
        return f"no kernel reads a cache of {cache_type}"
    if block_size > 65536 or block_size % 2:
        return f"a cache block has an even number of tokens, at most 65536, not {block_size}"
    if attention.latent is not None:
        return _uncovered_latents(attention, attention.latent, cache_type)
    if attention.head_dim > MAX_HEAD_DIM or attention.head_dim % 2:
        return f"heads are even and at most {MAX_HEAD_DIM} wide, not {attention.head_dim}"
    if attention.num_heads > 256 * attention.num_kv_heads:
        return "more than 256 heads share a key head"
    has_qk_layer_norm = spec.norm_kind is NormKind.LAYER and attention.qk_norm is not QkNorm.NONE
    is_of_each = attention.qk_norm is QkNorm.EACH_HEAD
    if has_qk_layer_norm and (spec.norm_bias or not is_of_each):
        return "queries and keys have a LayerNorm with a bias, or one that all heads share"
    if is_of_each and not has_qk_layer_norm:
        return "queries and keys have an RMS norm with weights of each head"
    if attention.is_value_of_key and attention.qk_norm is QkNorm.FULL_WIDTH:
        return "values are made of keys that have one norm for all heads"
    return None
