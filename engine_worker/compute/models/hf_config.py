"""From a Hugging Face `config.json` to a `DecoderSpec`: finds the family and lets it read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.compute.models.families.registry import FAMILIES
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.errors import UnsupportedArchitectureError, UnsupportedFormatError


def load_spec(folder: Path) -> DecoderSpec:
    """Reads the decoder of a model folder.

    Args:
        folder: Holds `config.json`.

    Returns:
        A spec that `declare` accepts or refuses by name.

    Raises:
        ModelConfigError: The file is missing, unreadable or contradicts itself.
        UnsupportedArchitectureError: No decoder for it; lists those that have one.
        UnsupportedFormatError: The weights are quantised in a format that is not read.
        UnsupportedFeatureError: One value of the config has no meaning here.
    """
    return decoder_spec(read_config(folder))


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Turns a parsed `config.json` into a spec; errors as `load_spec`."""
    fields = ConfigFields(config)
    architecture = _architecture(fields)
    _refuse_quantized(fields)
    return FAMILIES[architecture].read(config)


def _architecture(fields: ConfigFields) -> str:
    """The first supported architecture that the config names, else the one of its model type."""
    named = fields.strings("architectures") or ()
    for architecture in named:
        if architecture in FAMILIES:
            return architecture
    model_type = fields.text("model_type", "")
    if not named:
        for architecture, family in FAMILIES.items():
            if family.model_type == model_type:
                return architecture
    name = named[0] if named else f"model type {model_type!r}"
    raise UnsupportedArchitectureError(
        f"{name} is not supported; supported architectures: {', '.join(FAMILIES)}"
    )


def _refuse_quantized(fields: ConfigFields) -> None:
    quantization = fields.mapping("quantization_config")
    if quantization is None:
        return
    method = ConfigFields(quantization, "config.json: quantization_config").text(
        "quant_method", "an unnamed method"
    )
    raise UnsupportedFormatError(
        f"the weights are quantised ({method}), a format that is not supported; use the original "
        "model with float32, float16 or bfloat16 safetensors"
    )
