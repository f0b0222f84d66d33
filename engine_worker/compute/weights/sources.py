"""Which tensors of a Hugging Face checkpoint make up each weight of the decoder."""

from dataclasses import dataclass

from engine_worker.compute.models.decoder import DecoderGraph
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, MlpSpec

IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that old checkpoints carry along; they are computed, not loaded."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint that fills rows of one weight: its name and its shape."""

    name: str
    shape: tuple[int, ...]


def weight_sources(graph: DecoderGraph) -> tuple[tuple[Source, ...], ...]:
    """For each leaf the tensors that, joined along their first axis, fill it.

    Args:
        graph: The declared decoder.

    Returns:
        Aligned with `graph.parameters`.
    """
    by_path = _by_path(graph.spec)
    return tuple(by_path[parameter.path] for parameter in graph.parameters)


def is_ignorable(name: str, spec: DecoderSpec) -> bool:
    """Whether a tensor that no weight asks for is one that checkpoints rightly hold."""
    return name.endswith(IGNORED_SUFFIXES) or (spec.tied_head and name == HEAD)


def _by_path(spec: DecoderSpec) -> dict[str, tuple[Source, ...]]:
    hidden = spec.hidden_size
    table = (spec.vocab_size, hidden)
    sources: dict[str, tuple[Source, ...]] = {
        "embedding.weight": (Source(EMBEDDING, table),),
        "norm.weight": (Source("model.norm.weight", (hidden,)),),
        "head.weight": (Source(HEAD, table),),
    }
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        assert isinstance(layer.mlp, MlpSpec), "check_supported refuses experts"
        sources |= _attention(ours, theirs, layer.attention, hidden)
        sources |= _mlp(ours, theirs, layer.mlp, hidden)
    return sources


def _attention(
    ours: str, theirs: str, attention: AttentionSpec, hidden: int
) -> dict[str, tuple[Source, ...]]:
    ours, block = f"{ours}attention.", f"{theirs}self_attn."
    rows = {"q_proj": attention.q_size, "k_proj": attention.kv_size, "v_proj": attention.kv_size}
    head = (attention.head_dim,)
    return {
        f"{ours}norm.weight": (Source(f"{theirs}input_layernorm.weight", (hidden,)),),
        f"{ours}qkv.weight": tuple(
            Source(f"{block}{name}.weight", (size, hidden)) for name, size in rows.items()
        ),
        f"{ours}qkv.bias": tuple(
            Source(f"{block}{name}.bias", (size,)) for name, size in rows.items()
        ),
        f"{ours}q_norm.weight": (Source(f"{block}q_norm.weight", head),),
        f"{ours}k_norm.weight": (Source(f"{block}k_norm.weight", head),),
        f"{ours}o.weight": (Source(f"{block}o_proj.weight", (hidden, attention.q_size)),),
        f"{ours}o.bias": (Source(f"{block}o_proj.bias", (hidden,)),),
    }


def _mlp(ours: str, theirs: str, mlp: MlpSpec, hidden: int) -> dict[str, tuple[Source, ...]]:
    ours, block, inner = f"{ours}mlp.", f"{theirs}mlp.", mlp.intermediate_size
    fused = ("gate_proj", "up_proj")
    return {
        f"{ours}norm.weight": (Source(f"{theirs}post_attention_layernorm.weight", (hidden,)),),
        f"{ours}gate_up.weight": tuple(
            Source(f"{block}{name}.weight", (inner, hidden)) for name in fused
        ),
        f"{ours}gate_up.bias": tuple(Source(f"{block}{name}.bias", (inner,)) for name in fused),
        f"{ours}down.weight": (Source(f"{block}down_proj.weight", (hidden, inner)),),
        f"{ours}down.bias": (Source(f"{block}down_proj.bias", (hidden,)),),
    }
