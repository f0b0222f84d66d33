"""Which tensors of a checkpoint fill each weight of a decoder, as most families name them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

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
        period: The tensor's rows come in groups of so many, and `rows` are those of each group.
        is_transposed: The checkpoint holds [.., in, out].
        may_be_transposed: It may; the shape of its tensor tells.
        has_halves_in_turn: Its last axis, as the checkpoint holds it, has the numbers of two halves
            in turn (gate 0, up 0, gate 1, ...), of which the weight has one behind the other.
        pairs: So many rows at the beginning of each group of `period` are pairs of neighbours, of
            which the weight has the first of each before the second of each.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    period: int | None = None
    is_transposed: bool = False
    may_be_transposed: bool = False
    has_halves_in_turn: bool = False
    pairs: int = 0


Tensors = dict[str, tuple[Source, ...]]
"""By the path of a weight (`Parameter.path`): what fills it, in order."""

TensorNames = Callable[[DecoderSpec, Collection[str]], Tensors]
"""From a decoder and the names of all tensors that the checkpoint holds, which may be spelled in
several ways, to what fills each weight. The names are empty where the usual spelling is wanted."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a family spells its tensors; what isn't given is as in Llama's checkpoints.

    Attributes:
        model: Prefix of every tensor but the head's.
        head: Of the output head.
        embedding_name, last_norm: Behind `model`.
        attention_block, mlp_block: In a layer, with a dot at the end.
        attention_norm, attention_post_norm: Before and behind attention.
        mlp_norm, mlp_post_norm: Before and behind the MLP.
        qkv: The tensors that are q, k and v, in this order; a single one holds all of them.
        gate_up: Likewise the tensors before the MLP's activation.
        down: Of the MLP.
    """

    model: str = "model."
    head: str = HEAD
    embedding_name: str = "embed_tokens"
    last_norm: str = "norm"
    attention_block: str = "self_attn."
    mlp_block: str = "mlp."
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = "post_feedforward_layernorm"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"

    @property
    def embedding(self) -> str:
        """The tensor of the token embedding."""
        return f"{self.model}{self.embedding_name}.weight"


LLAMA = Spelling()


def decoder_tensors(
    spec: DecoderSpec, _: Collection[str] = (), spelling: Spelling = LLAMA
) -> Tensors:
    """The names of Llama's checkpoints, which most families have, or another spelling."""
    hidden = spec.hidden_size
    sources = outer_tensors(spec, spelling)
    for index, layer in enumerate(spec.layers):
        ours, theirs = f"layers.{index}.", f"{spelling.model}layers.{index}."
        if layer.is_attention:
            sources |= attention_tensors(ours, theirs, layer.attention, hidden, spelling)
        if isinstance(layer.mlp, MlpSpec):
            sources |= mlp_tensors(ours, theirs, layer.mlp, hidden, spelling)
    return sources


def outer_tensors(spec: DecoderSpec, spelling: Spelling = LLAMA) -> Tensors:
    """What belongs to no layer."""
    hidden, norm = spec.hidden_size, f"{spelling.model}{spelling.last_norm}"
    table = (spec.vocab_size, hidden)
    return {
        "embedding.weight": (Source(spelling.embedding, table),),
        **_norm_tensors("norm", norm, hidden),
        "head.weight": (Source(spelling.head, table),),
    }


def spelled(spelling: Spelling) -> TensorNames:
    """The names of a family that spells them so."""
    return partial(decoder_tensors, spelling=spelling)


def text_model_tensors(spelling: Spelling = LLAMA) -> TensorNames:
    """The names of the text model in a checkpoint that has more, in all their spellings.

    Args:
        spelling: But for `model` and `head`, which the checkpoint's own names tell.
    """

    def tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
        models = (replace(spelling, model=prefix) for prefix in _TEXT_MODELS)
        model = next((found for found in models if found.embedding in names), None)
        head = next((name for name in _TEXT_HEADS if name in names), HEAD)
        return decoder_tensors(spec, names, replace(model or spelling, head=head))

    return tensors


def rotated_by_halves(usual: TensorNames) -> TensorNames:
    """The tensors of a family that rotates neighbours, (2i, 2i + 1), as one that rotates halves.

    The scores are the same products in another order, and the kernels rotate halves.
    """

    def tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
        sources = usual(spec, names)
        for index, layer in enumerate(spec.layers):
            rope, head_dim = layer.attention.rope, layer.attention.head_dim
            assert rope is not None, "every layer has one"
            assert layer.attention.qk_norm is QkNorm.NONE, "a norm would have to be put in order"
            rotated = int(head_dim * rope.partial_factor)
            for path in (f"layers.{index}.attention.qkv.{kind}" for kind in ("weight", "bias")):
                query, key, *rest = sources[path]
                apart = (replace(one, pairs=rotated, period=head_dim) for one in (query, key))
                sources[path] = (*apart, *rest)
        return sources

    return tensors


def text_model_of_others(usual: TensorNames) -> TensorNames:
    """The names of a text model in a checkpoint that has more, from those that it has by itself."""

    def tensors(spec: DecoderSpec, names: Collection[str] = ()) -> Tensors:
        embeddings = ((prefix, f"{prefix}embed_tokens.weight") for prefix in _TEXT_MODELS)
        prefix = next((found for found, name in embeddings if name in names), _MODEL)
        head = next((name for name in _TEXT_HEADS if name in names), HEAD)
        plain = {f"{_MODEL}{name[len(prefix) :]}" for name in names if name.startswith(prefix)}

        def renamed(source: Source) -> Source:
            if source.name == HEAD:
                return replace(source, name=head)
            return replace(source, name=prefix + source.name.removeprefix(_MODEL))

        return {path: tuple(map(renamed, parts)) for path, parts in usual(spec, plain).items()}

    return tensors


_MODEL = "model."
_TEXT_MODELS = ("language_model.model.", "model.language_model.", "model.")
_TEXT_HEADS = (f"language_model.{HEAD}", HEAD)
"""Prefixes of a text model's tensors and names of its head, in old checkpoints and new ones."""


def attention_tensors(
    ours: str, theirs: str, attention: AttentionSpec, hidden: int, spelling: Spelling = LLAMA
) -> Tensors:
    """The attention block of a layer.

    Args:
        ours: Prefix of the layer's weights, `layers.0.`.
        theirs: Prefix of the layer's tensors, `model.layers.0.`.
        attention: The layer's.
        hidden: Width of the residual.
        spelling: Of the family.
    """
    ours, block = f"{ours}attention.", f"{theirs}{spelling.attention_block}"
    rows = (attention.q_size, attention.kv_size, attention.kv_size)
    q_norm, k_norm = _qk_norm_shapes(attention)
    return {
        **_norm_tensors(f"{ours}norm", f"{theirs}{spelling.attention_norm}", hidden),
        **_norm_tensors(f"{ours}post_norm", f"{theirs}{spelling.attention_post_norm}", hidden),
        **_joined_tensors(f"{ours}qkv", block, spelling.qkv, rows, hidden),
        f"{ours}q_norm.weight": (Source(f"{block}q_norm.weight", q_norm),),
        f"{ours}k_norm.weight": (Source(f"{block}k_norm.weight", k_norm),),
        f"{ours}sinks": (Source(f"{block}sinks", (attention.num_heads,)),),
        f"{ours}o.weight": (Source(f"{block}o_proj.weight", (hidden, attention.q_size)),),
        f"{ours}o.bias": (Source(f"{block}o_proj.bias", (hidden,)),),
    }


def _qk_norm_shapes(attention: AttentionSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    width = attention.head_dim
    match attention.qk_norm:
        case QkNorm.FULL_WIDTH:
            return (attention.q_size,), (attention.kv_size,)
        case QkNorm.EACH_HEAD:
            return (attention.num_heads, width), (attention.num_kv_heads, width)
        case _:
            return (width,), (width,)


def mlp_tensors(
    ours: str, theirs: str, mlp: MlpSpec, hidden: int, spelling: Spelling = LLAMA
) -> Tensors:
    """The MLP block of a layer; arguments as in `attention_tensors`."""
    ours, block, inner = f"{ours}mlp.", f"{theirs}{spelling.mlp_block}", mlp.intermediate_size
    rows = (inner, inner) if mlp.gated else (inner,)
    return {
        **_norm_tensors(f"{ours}norm", f"{theirs}{spelling.mlp_norm}", hidden),
        **_norm_tensors(f"{ours}post_norm", f"{theirs}{spelling.mlp_post_norm}", hidden),
        **_joined_tensors(f"{ours}gate_up", block, spelling.gate_up, rows, hidden),
        f"{ours}down.weight": (Source(f"{block}{spelling.down}.weight", (hidden, inner)),),
        f"{ours}down.bias": (Source(f"{block}{spelling.down}.bias", (hidden,)),),
    }


def _norm_tensors(ours: str, theirs: str, size: int) -> Tensors:
    return {f"{ours}.{part}": (Source(f"{theirs}.{part}", (size,)),) for part in ("weight", "bias")}


def _joined_tensors(
    ours: str, block: str, names: Sequence[str], rows: Sequence[int], in_size: int
) -> Tensors:
    """A matrix and a bias whose rows come from several tensors, or from one that is joined too."""
    if len(names) == 1:
        rows = (sum(rows),)
    parts = [(f"{block}{name}", size) for name, size in zip(names, rows, strict=True)]
    return {
        f"{ours}.weight": tuple(Source(f"{name}.weight", (size, in_size)) for name, size in parts),
        f"{ours}.bias": tuple(Source(f"{name}.bias", (size,)) for name, size in parts),
    }
