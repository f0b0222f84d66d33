"""Which tensors of a checkpoint fill each weight of a decoder, as most families name them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, MlpSpec, QkNorm

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint that fills the next rows of one weight.

    A weight of more than two axes counts as a matrix whose rows are all axes but the last.

    Attributes:
        shape: Of the whole tensor, as the checkpoint holds it.
        rows: First row and the one behind the last, where only some of them are meant; counted
            after `is_transposed`.
        is_transposed: The checkpoint holds [.., in, out].
        has_halves_in_turn: Its last axis, as the checkpoint holds it, has the numbers of two halves
            in turn (gate 0, up 0, gate 1, ...), of which the weight has one behind the other.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    is_transposed: bool = False
    has_halves_in_turn: bool = False


Tensors = dict[str, tuple[Source, ...]]
"""By the path of a weight (`Parameter.path`): what fills it, in order."""

TensorNames = Callable[[DecoderSpec, Collection[str]], Tensors]
"""From a decoder and the names of all tensors that the checkpoint holds, which may be spelled in
several ways, to what fills each weight. The names are empty where the usual spelling is wanted."""


def decoder_tensors(spec: DecoderSpec, _: Collection[str] = ()) -> Tensors:
    """The names of Llama's checkpoints, which most families have taken over."""
    hidden = spec.hidden_size
    table = (spec.vocab_size, hidden)
    sources: Tensors = {
        "embedding.weight": (Source(EMBEDDING, table),),
        "norm.weight": (Source("model.norm.weight", (hidden,)),),
        "head.weight": (Source(HEAD, table),),
    }
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"model.layers.{index}."
        if layer.is_attention:
            sources |= attention_tensors(ours, theirs, layer.attention, hidden)
        if isinstance(layer.mlp, MlpSpec):
            sources |= mlp_tensors(ours, theirs, layer.mlp, hidden)
    return sources


def attention_tensors(ours: str, theirs: str, attention: AttentionSpec, hidden: int) -> Tensors:
    """The attention block of a layer.

    Args:
        ours: Prefix of the layer's weights, `layers.0.`.
        theirs: Prefix of the layer's tensors, `model.layers.0.`.
        attention: The layer's.
        hidden: Width of the residual.
    """
    ours, block = f"{ours}attention.", f"{theirs}self_attn."
    rows = {"q_proj": attention.q_size, "k_proj": attention.kv_size, "v_proj": attention.kv_size}
    is_wide = attention.qk_norm is QkNorm.FULL_WIDTH
    q_norm = (attention.q_size if is_wide else attention.head_dim,)
    k_norm = (attention.kv_size if is_wide else attention.head_dim,)
    return {
        f"{ours}norm.weight": (Source(f"{theirs}input_layernorm.weight", (hidden,)),),
        f"{ours}qkv.weight": tuple(
            Source(f"{block}{name}.weight", (size, hidden)) for name, size in rows.items()
        ),
        f"{ours}qkv.bias": tuple(
            Source(f"{block}{name}.bias", (size,)) for name, size in rows.items()
        ),
        f"{ours}q_norm.weight": (Source(f"{block}q_norm.weight", q_norm),),
        f"{ours}k_norm.weight": (Source(f"{block}k_norm.weight", k_norm),),
        f"{ours}o.weight": (Source(f"{block}o_proj.weight", (hidden, attention.q_size)),),
        f"{ours}o.bias": (Source(f"{block}o_proj.bias", (hidden,)),),
    }


def mlp_tensors(ours: str, theirs: str, mlp: MlpSpec, hidden: int) -> Tensors:
    """The MLP block of a layer; arguments as in `attention_tensors`."""
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
