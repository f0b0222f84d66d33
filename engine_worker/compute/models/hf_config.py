"""From a Hugging Face `config.json` to a `DecoderSpec`: finds the family and lets it read."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from engine_worker.compute.models.config_fields import CONFIG_NAME, ConfigFields, read_config
from engine_worker.compute.models.families.family import Family
from engine_worker.compute.models.families.registry import (
    FAMILIES,
    every_family,
    find_family,
)
from engine_worker.compute.models.hf_rope import MAX_POSITIONS
from engine_worker.compute.models.quantization import read_quantization
from engine_worker.compute.models.spec import DecoderSpec, MoeSpec, RopeKind
from engine_worker.errors import ModelConfigError, UnsupportedArchitectureError

MAX_ALL_EXPERTS = 2**17
"""Of all layers; the largest models have a fifth of it."""


def load_spec(folder: Path) -> DecoderSpec:
    """Reads the decoder of a model folder.

    Args:
        folder: Holds `config.json`.

    Returns:
        A spec that `declare` accepts or refuses by name.

    Raises:
        ModelConfigError: The file is missing, unreadable or contradicts itself.
        UnsupportedArchitectureError: No decoder for it; names the nearest that has one, and all.
        UnsupportedFormatError: The weights are quantised in a format that is not read.
        UnsupportedFeatureError: One value of the config has no meaning here.
    """
    return decoder_spec(read_config(folder))


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Turns a parsed `config.json` into a spec; errors as `load_spec`."""
    fields = ConfigFields(config)
    architecture = _architecture(fields)
    # Refuses a method that is not read.
    read_quantization(config)
    family = find_family(architecture)
    assert family is not None, architecture
    try:
        spec = family.read(config)
    except ArithmeticError as error:
        raise ModelConfigError(
            f"{CONFIG_NAME}: holds a number that is too large to compute with ({error})"
        ) from error
    _check_experts(spec)
    return _as_long_as_scaled(spec)


def _check_experts(spec: DecoderSpec) -> None:
    """Refuses more experts than any model has: each has tensors, whose names are all listed."""
    total = sum(layer.mlp.num_experts for layer in spec.layers if isinstance(layer.mlp, MoeSpec))
    if total > MAX_ALL_EXPERTS:
        raise ModelConfigError(
            f"{CONFIG_NAME}: all layers together have {total} experts; at most {MAX_ALL_EXPERTS}"
            " are read"
        )


def _as_long_as_scaled(spec: DecoderSpec) -> DecoderSpec:
    """The decoder with the context that YaRN gives it, where its config still says a shorter one.

    The pages of Qwen 2.5 and 3 have people add `rope_scaling`, and nothing else.
    """
    ropes = (layer.attention.rope for layer in spec.layers if layer.is_attention)
    lengths = [
        int(min(rope.factor * rope.original_max_position_embeddings, MAX_POSITIONS))
        for rope in ropes
        if rope is not None and rope.kind is RopeKind.YARN
    ]
    return replace(spec, max_position_embeddings=max(spec.max_position_embeddings, *lengths, 0))


def _architecture(fields: ConfigFields) -> str:
    """The first supported architecture that the config names, else the one of its model type."""
    named = fields.strings("architectures") or ()
    # Only what no family here has is looked for in other packages.
    for architecture in sorted(named, key=lambda name: name not in FAMILIES):
        if find_family(architecture) is not None:
            return architecture
    model_type = fields.text("model_type", "")
    known = every_family()
    if not named:
        for architecture, family in known.items():
            if family.model_type == model_type:
                return architecture
    name = named[0] if named else f"model type {model_type!r}"
    nearest = _nearest(named[0] if named else model_type, known, by_type=not named)
    raise UnsupportedArchitectureError(
        f"{name} is not supported; the nearest that is: {nearest}; supported architectures: "
        f"{', '.join(known)}"
    )


def _nearest(name: str, known: Mapping[str, Family], *, by_type: bool) -> str:
    """The supported architecture whose name, or whose model type, is most alike."""
    names = {
        (family.model_type if by_type else architecture).lower(): architecture
        for architecture, family in known.items()
    }
    return names[get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]]
