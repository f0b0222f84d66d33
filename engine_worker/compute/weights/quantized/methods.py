"""Which file reads which method, and where a folder says what its method is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from engine_worker.compute.models.config_fields import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    ConfigFields,
    read_config,
)
from engine_worker.compute.models.quantization import (
    Quantization,
    QuantMethod,
    quantization_of,
    read_quantization,
)
from engine_worker.compute.weights.quantized.auto_round import read_auto_round
from engine_worker.compute.weights.quantized.awq import read_awq
from engine_worker.compute.weights.quantized.bitsandbytes import read_bitsandbytes
from engine_worker.compute.weights.quantized.compressed_tensors import read_compressed_tensors
from engine_worker.compute.weights.quantized.derived import (
    DerivedCheckpoint,
    DerivedTensor,
    StoredTensors,
)
from engine_worker.compute.weights.quantized.fp8 import read_fp8
from engine_worker.compute.weights.quantized.gptq import read_gptq
from engine_worker.compute.weights.quantized.mlx import read_mlx
from engine_worker.compute.weights.quantized.modelopt import read_modelopt
from engine_worker.compute.weights.quantized.mxfp4 import read_mxfp4
from engine_worker.compute.weights.safetensors_files import SafetensorsCheckpoint
from engine_worker.errors import ModelConfigError

ReadMethod = Callable[[StoredTensors, ConfigFields], Iterator[DerivedTensor]]

METHODS: Final[dict[QuantMethod, ReadMethod]] = {
    QuantMethod.AWQ: read_awq,
    QuantMethod.GPTQ: read_gptq,
    QuantMethod.COMPRESSED_TENSORS: read_compressed_tensors,
    QuantMethod.FP8: read_fp8,
    QuantMethod.FBGEMM_FP8: read_fp8,
    QuantMethod.MXFP4: read_mxfp4,
    QuantMethod.BITSANDBYTES: read_bitsandbytes,
    QuantMethod.AUTO_ROUND: read_auto_round,
    QuantMethod.MODELOPT: read_modelopt,
    QuantMethod.MLX: read_mlx,
}
_OLD_FILES: Final = {
    "quantize_config.json": QuantMethod.GPTQ,
    "quant_config.json": QuantMethod.AWQ,
    "hf_quant_config.json": QuantMethod.MODELOPT,
}
"""What quantisers wrote beside `config.json` before transformers knew their formats."""
_INNER: Final = "quantization"
"""What modelopt puts its object into, beside one about itself."""


def find_quantization(folder: Path) -> Quantization | None:
    """How the weights of a model folder are quantised; None where they aren't.

    Raises:
        UnsupportedFormatError: By a method that is not read.
        ModelConfigError: What says so can't be read.
    """
    if (folder / CONFIG_NAME).is_file():
        found = read_quantization(read_config(folder))
        if found is not None:
            return found
    for name, method in _OLD_FILES.items():
        if (folder / name).is_file():
            values = _read_object(folder / name)
            inner = ConfigFields(values, name).mapping(_INNER)
            return quantization_of(values if inner is None else inner, name, method)
    return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelConfigError(f"{path}: must hold a JSON object")
    return values


def dequantized(
    base: SafetensorsCheckpoint, quantization: Quantization
) -> SafetensorsCheckpoint | DerivedCheckpoint:
    """A checkpoint with the tensors that its quantised ones stand for.

    Args:
        base: What the files hold.
        quantization: Of the folder.

    Returns:
        `base` itself where nothing in it is quantised after all.

    Raises:
        CheckpointError: Parts of a tensor are missing or disagree; names file and tensor.
        UnsupportedFormatError: A form of the method that is not read.
    """
    stored = StoredTensors(base.tensors, base.listing)
    derived = tuple(METHODS[quantization.method](stored, quantization.fields))
    if not derived:
        return base
    return DerivedCheckpoint(base, derived, quantization.method)
