"""NVIDIA's Model Optimizer: fp8 with one scale a tensor or a row, and NVFP4.

What a module is follows from its tensors. Source: modelopt, `torch/export/quant_utils.py`, and how
vLLM's `modelopt.py` reads it.
"""

from collections.abc import Iterator
from typing import Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.weights.quantized.compressed_tensors import fp4_module
from engine_worker.compute.weights.quantized.derived import DerivedTensor, StoredTensors
from engine_worker.compute.weights.quantized.fp8 import FLOAT8, scaled_weight
from engine_worker.errors import UnsupportedFormatError

_ALGORITHMS: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION")
_INPUT_SCALE: Final = ".pre_quant_scale"
_ACTIVATIONS: Final = ("input_scale", "output_scale", "k_scale", "v_scale")
_BLOCK: Final = (128, 128)


def read_modelopt(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """Weights in fp8 with `weight_scale`, or in fp4 with `weight_scale` and `weight_scale_2`.

    Raises:
        UnsupportedFormatError: Another algorithm, or one that scales a module's inputs, too.
        CheckpointError: A part is missing, or the shapes disagree.
    """
    algorithm = fields.text("quant_algo", _ALGORITHMS[0]).upper()
    if algorithm not in _ALGORITHMS:
        raise UnsupportedFormatError(
            f"modelopt's {algorithm!r:.40} is not read, only {', '.join(_ALGORITHMS)}; use such a"
            " checkpoint or the original model"
        )
    for module, scale in stored.ending_in(_INPUT_SCALE):
        raise UnsupportedFormatError(
            f"{scale.file}: tensor {module + _INPUT_SCALE!r} scales what goes into the module,"
            " which is not computed; use a checkpoint without it or the original model"
        )
    for module, weight in stored.ending_in(".weight"):
        if weight.dtype in FLOAT8:
            scale = stored.need(f"{module}.weight_scale", weight)
            unused = (stored.get(f"{module}.{name}") for name in _ACTIVATIONS)
            yield scaled_weight(weight, scale, _BLOCK, *unused)
        elif weight.dtype == "U8":
            yield fp4_module(stored, module, weight, "weight_scale_2", divides=False)
