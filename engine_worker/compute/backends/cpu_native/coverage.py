"""Which blocks the kernels compute, and why they leave the others to XLA."""

from engine_worker.compute.backends.cpu_native.calls import (
    CACHE_TYPES,
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_KEY_DIM,
    MAX_LATENT_HEADS,
    MAX_TAPS,
    QK_NORMS,
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
    if weight_type == "int8" and _widest(spec, layer) > 65536:
        return "int8 products have at most 65536 inputs"
    if block in {"embedding", "head"}:
        return None
    if block == "recurrent":
        # Norms, gates and what is added to the residual are left to XLA.
        covered = are_recurrent_layers_covered(spec)
        return None if covered else f"the kernels convolve at most {MAX_TAPS} tokens"
    if spec.alt_up is not None:
        return "no kernel computes several residuals side by side"
    if block == "mlp" and isinstance(layer.mlp, MoeSpec):
        # Norms, routing and what is added to the residual are left to XLA.
        return _uncovered_experts(layer.mlp)
    placement = spec.placement_in(layer)
    if placement is NormPlacement.PARALLEL:
        return "attention and MLP read the same norm side by side"
    if spec.norm_kind is NormKind.LAYER and placement is not NormPlacement.PRE:
        return "LayerNorm stands behind the block"
    if block == "attention":
        if any(other.is_beside for other in spec.layers):
            return "mixers stand side by side"
        if any(
            other.is_attention and other.attention.shared_from is not None for other in spec.layers
        ):
            return "layers share keys and values"
        if spec.norm_kind is NormKind.LAYER and layer.attention.qk_norm is not QkNorm.NONE:
            return "queries and keys have a LayerNorm"
        return _uncovered_attention(layer, cache_type, block_size)
    assert isinstance(layer.mlp, MlpSpec), "a layer with an MLP"
    return _uncovered_mlp(layer.mlp)


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
    if mlp.gate_multiplier != 1.0:
        return "no kernel multiplies the gate"
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


def _uncovered_attention(layer: LayerSpec, cache_type: str, block_size: int) -> str | None:
    attention = layer.attention
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
    if attention.qk_norm not in QK_NORMS:
        return f"no kernel normalises queries and keys {attention.qk_norm}"
    if attention.is_value_of_key and attention.qk_norm is QkNorm.FULL_WIDTH:
        return "values are made of keys that have one norm for all heads"
    return None
