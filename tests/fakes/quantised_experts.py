"""Decoders as AWQ, GPTQ, compressed-tensors and MXFP4 keep them.

Packed here by the formats' definitions; `tests/unit/engine_worker/compute/weights/quantized/` holds
what is read of such files to the packages that write them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.fakes.stored_experts import SCALE
from tests.fakes.tiny_checkpoint import Tensors, random_tensors, write_checkpoint

GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_IN_ORDER = tuple(range(8))
Matrix = npt.NDArray[Any]


def packed_words(rows: Matrix, order: tuple[int, ...] = _IN_ORDER) -> Matrix:
    """Eight numbers of four bits side by side in a word: [n, m / 8] of [n, m]."""
    words = np.zeros((len(rows), rows.shape[1] // 8), np.uint32)
    for place, index in enumerate(order):
        words |= rows[:, index::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def _with_zeros(weight: Matrix, group: int) -> tuple[Matrix, Matrix, Matrix]:
    """Integers [out, in] from 0 to 15, zeros [out, G] from 1, and scales [out, G]."""
    groups = weight.reshape(len(weight), -1, group)
    low, high = groups.min(-1).clip(None, 0), groups.max(-1).clip(0, None)
    scales = ((high - low) / 14).astype(np.float16)
    zeros = np.rint(-low / scales).clip(1, 15)
    integers = np.rint(groups / scales[..., None]) + zeros[..., None]
    return integers.clip(0, 15).reshape(weight.shape).astype(np.uint8), zeros, scales


def _awq(weight: Matrix, group: int) -> Tensors:
    integers, zeros, scales = _with_zeros(weight, group)
    return {
        "qweight": packed_words(integers.T, _AWQ_ORDER),
        "qzeros": packed_words(zeros.T, _AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }


def _gptq(weight: Matrix, group: int) -> Tensors:
    integers, zeros, scales = _with_zeros(weight, group)
    return {
        "qweight": np.ascontiguousarray(packed_words(integers).T),
        "qzeros": packed_words(zeros.T - 1),
        "scales": np.ascontiguousarray(scales.T),
    }


def _packed(weight: Matrix, group: int) -> Tensors:
    groups = weight.reshape(len(weight), -1, group)
    scales = (np.abs(groups).max(-1) / 7).astype(np.float32)
    integers = np.rint(groups / scales[..., None]).clip(-8, 7) + 8
    return {
        "weight_packed": packed_words(integers.reshape(weight.shape)),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }


def _int8(weight: Matrix, _: int) -> Tensors:
    scales = (np.abs(weight).max(-1, keepdims=True) / 127).astype(np.float32)
    return {"weight": np.rint(weight / scales).astype(np.int8), "weight_scale": scales}


_METHODS: dict[str, tuple[dict[str, Any], Callable[[Matrix, int], Tensors]]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, _awq),
    "gptq": ({"quant_method": "gptq", "bits": 4, "desc_act": False}, _gptq),
    "w4a16": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, _packed),
    "w8a8": ({"quant_method": "compressed-tensors", "format": "int-quantized"}, _int8),
}
METHODS = tuple(_METHODS)


def write_quantised(folder: Path, config: dict[str, Any], method: str) -> Tensors:
    """A folder whose projections are all quantised; routers, norms and tables are not.

    Returns:
        What was written.
    """
    stated, tensors = quantised(random_tensors(config, scale=SCALE), method)
    folder.mkdir(exist_ok=True)
    return write_checkpoint(folder, {**config, "quantization_config": stated}, tensors)


def quantised(tensors: Tensors, method: str, group: int = GROUP) -> tuple[dict[str, Any], Tensors]:
    """What a config says of a method, and tensors whose projections are in it."""
    stated, pack = _METHODS[method]
    found: Tensors = {}
    for name, values in tensors.items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            found |= {f"{module}.{part}": packed for part, packed in pack(values, group).items()}
        else:
            found[name] = values
    return ({"group_size": group} if "bits" in stated else {}) | stated, found


def write_mxfp4(folder: Path, config: dict[str, Any]) -> Tensors:
    """A GPT-OSS folder whose experts are any codes under scales of about a sixteenth.

    Returns:
        What was written.
    """
    random = np.random.default_rng(8)
    tensors = random_tensors(config, scale=SCALE)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // GROUP)
        tensors[f"{name}_blocks"] = random.integers(0, 256, (*shape, GROUP // 2), np.uint8)
        tensors[f"{name}_scales"] = random.integers(121, 125, shape, np.uint8)
    folder.mkdir(exist_ok=True)
    stated = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    return write_checkpoint(folder, {**config, "quantization_config": stated}, tensors)
