"""What a family of GGUF's is, and what all of them share: names of tensors, most of the config."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_worker.compute.weights.gguf.changes import Change, Join, rotate_halves
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.errors import CheckpointError

Config = dict[str, Any]
MAX_LAYERS = 1024
MAX_EXPERTS = 4096
_MAX_EXPERT_TENSORS = 2**20
"""Of all layers: the largest models have a tenth of it, and each has a name of its own here."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where one of Hugging Face's tensors is.

    Attributes:
        name: Of the tensor in the file.
        change: What is done to it.
        expert: Only this entry of its outermost axis.
        join: Made of several, of which `name` is the first and `others` are the others.
    """

    name: str
    change: Change | None = None
    expert: int | None = None
    join: Join | None = None
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors of the file that it is made of."""
        return (self.name, *self.others)

    @property
    def keeps_rows(self) -> bool:
        """Whether a matrix is one of the file but for the order of its rows."""
        if self.join is not None:
            return self.join.order is not None and not self.join.is_transposed
        change = self.change
        return (
            change is None
            or change.keeps_rows
            or change.is_transposition
            or change.column_parts > 0
        )

    @property
    def keeps_rows_of_each(self) -> bool:
        """Likewise of each matrix in a stack, where it may also be those of several in the file."""
        if self.join is not None:
            return self.join.order is not None
        return self.change is None or self.change.is_transposition

    @property
    def is_transposed(self) -> bool:
        """Whether the file has the last two axes the other way round."""
        if self.join is not None:
            return self.join.is_transposed
        return self.change is not None and self.change.is_transposition


Parts = dict[str, Part]
"""By Hugging Face's name."""


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """One architecture of GGUF's.

    Attributes:
        architecture: Hugging Face's name of it.
        model_type: Likewise.
        config: What its `config.json` says beyond `common_config`; what it sets to None is removed.
        layer: Names of a layer's tensors that differ from `_LAYER`, or come on top; without their
            ending, or with it where the other has none.
        experts: Of tensors that hold all experts of a layer: GGUF's name without its ending, and
            what follows `experts.0.` of each expert's own tensor, with what stands before in front.
        joins: Of tensors of a layer that are made of several, by the end of their own name.
        rotates_pairs: Whether the rows of queries and keys were reordered (see `rotate_halves`).
        changes: To tensors of a layer or of the whole model, by GGUF's name without `blk.0.`.
        changes_of: Those that take the model's sizes.
        joins_of: Joins that do.
        stacks: Tensors of the whole model that hold several of Hugging Face's: its name, with `{}`
            in the place of the number, by GGUF's.
        has_positions: Whether a model rotates anything.
        computes_rope: The config says what the file's factors of frequencies stand for.
        prefix: Of Hugging Face's names of a layer's tensors, before its number.
        fits: Whether a model is of this family, where several share a name.
        layers_behind: Matrices of the whole model that are applied to a text's vector, in order:
            Hugging Face has each in a folder of its own.
    """

    architecture: str
    model_type: str
    config: Callable[[GgufMetadata], Config] = lambda _: {}
    layer: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    joins: Mapping[str, Join] = field(default_factory=dict)
    rotates_pairs: bool = False
    changes: Mapping[str, Change] = field(default_factory=dict)
    changes_of: Callable[[GgufMetadata], Mapping[str, Change]] = lambda _: {}
    joins_of: Callable[[GgufMetadata], Mapping[str, Join]] = lambda _: {}
    stacks: Mapping[str, str] = field(default_factory=dict)
    has_positions: Callable[[GgufMetadata], bool] = lambda _: True
    computes_rope: bool = False
    prefix: str = "model.layers"
    fits: Callable[[GgufMetadata], bool] = lambda _: True
    layers_behind: tuple[str, ...] = ()


_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output_norm.bias": "model.norm.bias",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Llama's names, which most families have taken over; each with `.weight` or `.bias` behind."""
PREDICTION = {
    **{f"nextn.{name}": name for name in ("eh_proj", "enorm", "hnorm", "embed_tokens")},
    "nextn.shared_head_head": "shared_head.head",
    "nextn.shared_head_norm": "shared_head.norm",
}
"""Of layers that predict several tokens at once, which are left out."""
_ENDINGS = (".weight", ".bias")
_EXPERT_APART = re.compile(r"(ffn_(?:gate|up|down))\.(\d{1,4})")
"""An expert's matrix in a tensor of its own, as files had it before April 2024."""
ROPE_FACTORS = "rope_freqs.weight"
COMPUTED = (ROPE_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that stand for values of the config."""
_RERANKER_HEAD = "cls.output.weight"
"""Of a reranker that is a decoder: two rows of its output matrix, which is asked for them."""


def parts_of(family: GgufFamily, metadata: GgufMetadata) -> Parts:
    """All tensors of a model under Hugging Face's names.

    Those that the family doesn't know keep their own, so that they are told as having no place.

    Raises:
        CheckpointError: There are more experts than in any model.
    """
    _check_experts(family, metadata)
    parts: Parts = {}
    changes = _rotations(metadata) if family.rotates_pairs else {}
    changes |= {**family.changes_of(metadata), **family.changes}
    joins = {**family.joins, **family.joins_of(metadata)}
    joined = {place: (end, join) for end, join in joins.items() for place in join.places}
    for name in metadata.tensors:
        if name in COMPUTED or name in family.layers_behind:
            continue
        if name == _RERANKER_HEAD and name not in family.layer:
            continue
        index, place = split_layer(name)
        change = changes.get(place)
        stem, _, ending = place.rpartition(".")
        if index is not None and place in joined:
            end, join = joined[place]
            names = tuple(f"blk.{index}.{one}" for one in join.places)
            parts[f"{family.prefix}.{index}.{end}"] = Part(names[0], None, None, join, names[1:])
        elif index is not None and stem in family.experts:
            block, expert_name = family.experts[stem]
            for expert in range(_num_experts(metadata, name)):
                hf_name = f"{family.prefix}.{index}.{block}experts.{expert}.{expert_name}.{ending}"
                parts[hf_name] = Part(name, change, expert)
        elif name in family.stacks:
            for number in range(_num_experts(metadata, name)):
                parts[family.stacks[name].format(number)] = Part(name, change, number)
        else:
            parts[_hf_name(family, name, index, place)] = Part(name, change)
    return parts


def _check_experts(family: GgufFamily, metadata: GgufMetadata) -> None:
    """Experts take hardly any room in a file, but a name for each of them here."""
    total = 0
    for name in metadata.tensors:
        index, place = split_layer(name)
        if index is not None and place.rpartition(".")[0] in family.experts:
            total += _num_experts(metadata, name)
    if total > _MAX_EXPERT_TENSORS:
        raise CheckpointError(
            f"{metadata.path}: there are {total} matrices of experts; at most"
            f" {_MAX_EXPERT_TENSORS} are read"
        )


def _num_experts(metadata: GgufMetadata, name: str) -> int:
    shape = metadata.shape(name)
    if len(shape) < 2 or shape[0] > MAX_EXPERTS:
        raise CheckpointError(
            f"{metadata.path}: tensor {name!r} has the shape {list(shape)}; at most {MAX_EXPERTS}"
            " experts are read"
        )
    return shape[0]


def split_layer(name: str) -> tuple[int | None, str]:
    """`blk.3.attn_q.weight` as 3 and `attn_q.weight`; None for tensors of no layer."""
    block, _, rest = name.partition(".")
    number, _, place = rest.partition(".")
    if block != "blk" or not place or not (number.isascii() and number.isdigit()):
        return None, name
    return (int(number), place) if len(number) < 5 else (None, name)


def _hf_name(family: GgufFamily, name: str, index: int | None, place: str) -> str:
    if index is None:
        return family.layer.get(name) or _WHOLE.get(name, name)
    if place in family.layer:
        return f"{family.prefix}.{index}.{family.layer[place]}"
    for ending in _ENDINGS:
        stem = place.removesuffix(ending)
        if stem != place:
            known = family.layer.get(stem) or _LAYER.get(stem) or _expert_apart(family, stem)
            return f"{family.prefix}.{index}.{known}{ending}" if known else name
    return name


def _expert_apart(family: GgufFamily, stem: str) -> str | None:
    """Hugging Face's name of one expert's matrix; None for another tensor."""
    found = _EXPERT_APART.fullmatch(stem)
    if found is None or f"{found[1]}_exps" not in family.experts:
        return None
    block, name = family.experts[f"{found[1]}_exps"]
    return f"{block}experts.{int(found[2])}.{name}"


def _rotations(metadata: GgufMetadata) -> dict[str, Change]:
    num_layers = metadata.whole("block_count")
    queries = max(metadata.per_layer("attention.head_count", num_layers), default=0)
    keys = queries
    if metadata.has("attention.head_count_kv"):
        keys = max(metadata.per_layer("attention.head_count_kv", num_layers), default=0)
    return {
        f"{name}{ending}": rotate_halves(heads)
        for name, heads in (("attn_q", queries), ("attn_k", keys))
        for ending in _ENDINGS
    }


def common_config(metadata: GgufMetadata) -> Config:
    """What the `config.json` of nearly every family says, from the keys that all share."""
    num_layers = metadata.whole("block_count")
    if num_layers > MAX_LAYERS:
        raise metadata.error("block_count", f"must be at most {MAX_LAYERS}", num_layers)
    num_heads = max(metadata.per_layer("attention.head_count", num_layers), default=0)
    config: Config = {
        "vocab_size": metadata.shape("token_embd.weight")[0],
        "hidden_size": metadata.whole("embedding_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": metadata.whole("context_length"),
        "rope_theta": metadata.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
    }
    if metadata.has("attention.head_count_kv"):
        kv = metadata.per_layer("attention.head_count_kv", num_layers)
        config["num_key_value_heads"] = max(kv, default=0)
    if metadata.has("feed_forward_length"):
        widths = metadata.per_layer("feed_forward_length", num_layers)
        config["intermediate_size"] = max(widths, default=0)
    for key, name in (
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ):
        if metadata.has(key):
            config[name] = metadata.number(key)
    head_dim = metadata.whole("attention.key_length", 0)
    if head_dim:
        config["head_dim"] = head_dim
    scaling = rope_scaling(metadata)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def rope_scaling(metadata: GgufMetadata) -> Config | None:
    """`rope_scaling` of the config, where the file's keys say something of it."""
    kind = metadata.text("rope.scaling.type", "none")
    old_factor = metadata.number("rope.scale_linear", 1.0)
    if kind == "none" and old_factor != 1.0:
        return {"rope_type": "linear", "factor": old_factor}
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling: Config = {"rope_type": "yarn", "factor": metadata.number("rope.scaling.factor")}
        if metadata.has("rope.scaling.original_context_length"):
            original = metadata.whole("rope.scaling.original_context_length")
            scaling["original_max_position_embeddings"] = original
        for key in ("beta_fast", "beta_slow"):
            if metadata.has(f"rope.scaling.yarn_{key}"):
                scaling[key] = metadata.number(f"rope.scaling.yarn_{key}")
        return scaling
    # The factors of a long rope are tensors; which families have them is theirs to say.
    if kind == "none" or (kind == "longrope" and COMPUTED[1] in metadata.tensors):
        return None
    raise metadata.error("rope.scaling.type", "must be none, linear or yarn", kind)
