"""What a `config.json` says about the format of quantised weights: which method, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from engine_worker.compute.models.config_fields import CONFIG_NAME, ConfigFields
from engine_worker.errors import UnsupportedFormatError


class QuantMethod(StrEnum):
    """Values of `quant_method` whose tensors are read."""

    AWQ = "awq"
    GPTQ = "gptq"
    COMPRESSED_TENSORS = "compressed-tensors"
    FP8 = "fp8"
    FBGEMM_FP8 = "fbgemm_fp8"
    MXFP4 = "mxfp4"
    BITSANDBYTES = "bitsandbytes"
    AUTO_ROUND = "auto-round"
    MODELOPT = "modelopt"
    MLX = "mlx"


OLD_METHODS: Final = {"intel/auto-round": QuantMethod.AUTO_ROUND}
"""What old files call some of them."""
WAY_OUT: Final = "download it again, or use the original model"
_KEYS: Final = ("quantization_config", "compression_config")
"""The second is what compressed-tensors wrote in its first versions."""
_MLX_KEY: Final = "quantization"
"""MLX's own, in front of `quantization_config`, which it writes without a name of the method."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a checkpoint are quantised.

    Attributes:
        method: Whose format it is.
        fields: What the method's quantiser wrote about it.
    """

    method: QuantMethod
    fields: ConfigFields


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The quantisation that a `config.json` names, its text model's where the whole has none.

    Raises:
        UnsupportedFormatError: A method that is not read; names it and those that are.
        ModelConfigError: An entry of the wrong type.
    """
    fields = ConfigFields(config)
    of_mlx = fields.inner(_MLX_KEY)
    if of_mlx is not None and not fields.present(_KEYS[1]):
        named = fields.inner(_KEYS[0])
        if named is None or not named.present("quant_method"):
            return Quantization(QuantMethod.MLX, of_mlx)
    for key in _KEYS:
        found = fields.mapping(key)
        if found is not None:
            return quantization_of(found, f"{CONFIG_NAME}: {key}")
    text = config.get("text_config")
    return read_quantization(text) if isinstance(text, dict) else None


def quantization_of(
    values: Mapping[str, Any], where: str, method: QuantMethod | None = None
) -> Quantization:
    """A quantiser's own object.

    Args:
        values: The object.
        where: For messages.
        method: What it is where it doesn't say.

    Raises:
        UnsupportedFormatError: As `read_quantization`.
    """
    fields = ConfigFields(values, where)
    # Before methods had names, bitsandbytes was the only one.
    is_oldest = any(fields.flag(name, False) for name in ("load_in_4bit", "load_in_8bit"))
    unnamed = method or (QuantMethod.BITSANDBYTES if is_oldest else "an unnamed method")
    name = fields.text("quant_method", unnamed)
    try:
        return Quantization(OLD_METHODS.get(name) or QuantMethod(name), fields)
    except ValueError:
        raise UnsupportedFormatError(
            f"{where}: the weights are quantised by {name!r:.80}, which is not read; "
            f"{', '.join(QuantMethod)} are. Use the original model, or one quantised by these"
        ) from None
