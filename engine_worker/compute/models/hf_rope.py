"""Reads the rotary embedding out of a Hugging Face config, in both of its spellings.

Before transformers 5: `rope_theta` beside `rope_scaling` (which may be null, and calls its kind
`type` or `rope_type`). Since: one `rope_parameters` that holds all of it, maybe keyed by the type
of the layer.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.models.spec import RopeKind, RopeSpec
from engine_worker.errors import UnsupportedFeatureError

LAYER_TYPES = ("full_attention", "sliding_attention")
MAX_POSITIONS = 2**31 - 1
"""Positions are int32."""


def read_ropes(
    config: Mapping[str, Any], default_theta: float, max_position_embeddings: int
) -> dict[str, RopeSpec]:
    """The rope of each type of layer.

    Args:
        config: The whole `config.json`.
        default_theta: Where the config names none.
        max_position_embeddings: The context length, in tokens.

    Returns:
        One rope for each of `LAYER_TYPES`.

    Raises:
        ModelConfigError: A value is missing or of the wrong type.
        UnsupportedFeatureError: A kind that nobody here knows.
    """
    fields = ConfigFields(config)
    name, found = _stated_rope(fields)
    nested = {key: found[key] for key in LAYER_TYPES if isinstance(found.get(key), dict)}
    # What the nested spelling leaves out may stand at the top, as in the flat one.
    outer: dict[str, Any] = {"rope_theta": fields.number("rope_theta", default_theta)}
    if fields.present("partial_rotary_factor"):
        outer["partial_rotary_factor"] = fields.number("partial_rotary_factor")
    # Some files keep it at the top, where it goes before what the rope itself says.
    original = (
        fields.size("original_max_position_embeddings", maximum=MAX_POSITIONS)
        if fields.present("original_max_position_embeddings")
        else None
    )
    ropes = {}
    for layer_type in LAYER_TYPES:
        values = outer | (nested.get(layer_type, {}) if nested else found)
        where = f"config.json: {name}.{layer_type}" if nested else f"config.json: {name}"
        ropes[layer_type] = _read_rope(values, where, original, max_position_embeddings)
    return ropes


def _stated_rope(fields: ConfigFields) -> tuple[str, dict[str, Any]]:
    """What a config says of its ropes, in either spelling, and where.

    A `rope_scaling` beside `rope_parameters` was added by hand, as models' pages have it: what it
    says goes before, as in transformers, but doesn't take the base away.
    """
    stated, scaling = (fields.mapping(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if not stated or any(isinstance(stated.get(key), dict) for key in LAYER_TYPES):
        return ("rope_parameters", stated) if stated else ("rope_scaling", scaling)
    kept = {
        key: value
        for key, value in stated.items()
        if not scaling or key not in ("rope_type", "type")
    }
    return "rope_parameters", kept | scaling


def _read_rope(
    values: Mapping[str, Any], where: str, original: int | None, max_position_embeddings: int
) -> RopeSpec:
    fields = ConfigFields(values, where)
    kind_name = fields.text("rope_type", fields.text("type", RopeKind.DEFAULT.value))
    try:
        kind = RopeKind(kind_name)
    except ValueError:
        raise UnsupportedFeatureError(
            f"{where}: rope type {kind_name!r} is not supported"
        ) from None
    rope = RopeSpec(
        kind=kind,
        theta=fields.number("rope_theta"),
        partial_factor=fields.number("partial_rotary_factor", 1.0),
    )
    if rope.partial_factor > 1:
        raise fields.error("partial_rotary_factor", "must be at most 1", rope.partial_factor)
    context = original or fields.size(
        "original_max_position_embeddings", max_position_embeddings, maximum=MAX_POSITIONS
    )
    match kind:
        case RopeKind.LINEAR:
            return replace(rope, factor=fields.number("factor"))
        case RopeKind.LLAMA3:
            return _read_llama3(rope, fields, context)
        case RopeKind.YARN:
            return _read_yarn(rope, fields, context, max_position_embeddings / context)
        case RopeKind.LONGROPE:
            return _read_longrope(rope, fields, context, max_position_embeddings / context)
        case RopeKind.PROPORTIONAL:
            return replace(rope, factor=fields.number("factor", 1.0))
        case _:
            return rope


def _read_llama3(rope: RopeSpec, fields: ConfigFields, context: int) -> RopeSpec:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    # Llama 4 has both at 1: between them nothing is blended.
    if low > high:
        raise fields.error("low_freq_factor", f"must be at most high_freq_factor ({high})", low)
    return replace(
        rope,
        factor=fields.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=context,
    )


def _read_yarn(
    rope: RopeSpec, fields: ConfigFields, context: int, default_factor: float
) -> RopeSpec:
    if rope.theta <= 1:
        raise fields.error("rope_theta", "must be above 1", rope.theta)
    factor = fields.number("factor", default_factor)
    mscale, all_dim = (fields.number_or_zero(name) for name in ("mscale", "mscale_all_dim"))
    if fields.present("attention_factor"):
        attention_factor = fields.number("attention_factor")
    elif mscale and all_dim:
        attention_factor = yarn_temperature(factor, mscale) / yarn_temperature(factor, all_dim)
    else:
        attention_factor = yarn_temperature(factor, 1.0)
    return replace(
        rope,
        factor=factor,
        original_max_position_embeddings=context,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=fields.flag("truncate", True),
    )


def _read_longrope(
    rope: RopeSpec, fields: ConfigFields, context: int, default_factor: float
) -> RopeSpec:
    factor = fields.number("factor", default_factor)
    if factor > 1 and context < 2:
        raise fields.error("original_max_position_embeddings", "must be above 1", context)
    # The default is that of the paper's authors (arXiv 2402.13753).
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(context))
    return replace(
        rope,
        factor=factor,
        original_max_position_embeddings=context,
        attention_factor=fields.number("attention_factor", default),
        short_factors=fields.numbers("short_factor"),
        long_factors=fields.numbers("long_factor"),
    )


def yarn_temperature(factor: float, weight: float) -> float:
    """YaRN's temperature, as the factor on cosine and sine (arXiv 2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
