"""Which tensors of a checkpoint make up each weight of the decoder that is declared for it."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from engine_worker.compute.models.decoder import DecoderGraph
from engine_worker.compute.models.families.registry import family_of
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.models.tensors import EMBEDDING, HEAD, Source
from engine_worker.compute.weights.tensor_info import TensorInfo

IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attn_rot_embd.weight",
)
"""Buffers that old checkpoints carry along; they are computed, not loaded."""
_BASE: Final = "model."
"""Stands before the names of all tensors but the head's, unless the base model alone was saved."""
_KEYS_AND_VALUES: Final = re.compile(
    r".*layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\..+"
)


def weight_sources(
    graph: DecoderGraph, names: Collection[str] | Mapping[str, TensorInfo] = ()
) -> tuple[tuple[Source, ...], ...]:
    """For each leaf the tensors that, joined along their rows, fill it.

    Args:
        graph: The declared decoder.
        names: Of all tensors of the checkpoint, where a family's are spelled in several ways; with
            the tensors, where their shapes tell how some of them lie.

    Returns:
        Aligned with `graph.parameters`.
    """
    by_path = family_of(graph.spec).tensors(graph.spec, names)
    found = tuple(by_path[parameter.path] for parameter in graph.parameters)
    if isinstance(names, Mapping):
        found = tuple(tuple(_as_it_lies(source, names) for source in parts) for parts in found)
    if EMBEDDING in names or EMBEDDING.removeprefix(_BASE) not in names:
        return found
    # As saved from the base model, which is how models that make embeddings are shared.
    return tuple(
        tuple(replace(source, name=source.name.removeprefix(_BASE)) for source in parts)
        for parts in found
    )


def _as_it_lies(source: Source, tensors: Mapping[str, TensorInfo]) -> Source:
    """A source that may be transposed, as the checkpoint holds it.

    Of a square nothing tells; as by transformers, it is taken for one that isn't.
    """
    stored = tensors.get(source.name)
    if not source.may_be_transposed or stored is None or stored.shape == source.shape:
        return source
    turned = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return replace(source, shape=turned, is_transposed=True) if stored.shape == turned else source


def is_ignorable(name: str, spec: DecoderSpec) -> bool:
    """Whether a tensor that no weight asks for is one that checkpoints rightly hold."""
    if name.endswith(IGNORED_SUFFIXES) or (spec.tied_head and name.endswith(HEAD)):
        return True
    if _is_of_shared_keys(name, spec):
        return True
    family = family_of(spec)
    if family.has_prediction_layers and name.startswith(f"model.layers.{spec.num_layers}."):
        return True
    return name.startswith(family.ignored_prefixes)


def _is_of_shared_keys(name: str, spec: DecoderSpec) -> bool:
    """Whether a tensor makes keys or values of a layer that reads those of another one."""
    found = _KEYS_AND_VALUES.fullmatch(name)
    if found is None or int(found[1]) >= spec.num_layers:
        return False
    layer = spec.layers[int(found[1])]
    return layer.is_attention and layer.attention.shared_from is not None
