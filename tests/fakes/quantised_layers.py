"""Linear layers as bitsandbytes, and the newer formats of compressed-tensors and GPTQ, keep them.

Packed here by the formats' definitions and rounded to the nearest;
`tests/unit/engine_worker/compute/weights/quantized/` holds what is read of such files to the
packages that write them.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.fakes.quantised_experts import packed_words
from tests.fakes.tiny_checkpoint import Tensors

Matrix = npt.NDArray[Any]
Quantised = tuple[dict[str, Any], Tensors]
_GROUP: Final = 64
_E2M1: Final = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6), np.float32)
_NF4: Final = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_HALF: Final = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
_FP4: Final = (*_FP4_HALF, *(-value for value in _FP4_HALF))


def _nearest(values: Matrix, table: Matrix) -> Matrix:
    """Of each number the index of the nearest one in a table."""
    order = np.argsort(table, kind="stable")
    middles = (table[order][1:] + table[order][:-1]) / 2
    codes: Matrix = order[np.searchsorted(middles, values)].astype(np.uint8)
    return codes


def _four_bits(table: tuple[float, ...], kind: str) -> Callable[[Matrix], Tensors]:
    def pack(weight: Matrix) -> Tensors:
        codes_of = np.array(table, np.float32)
        blocks = weight.reshape(-1, _GROUP).astype(np.float32)
        absmax = np.abs(blocks).max(-1)
        codes = _nearest(blocks / absmax[:, None], codes_of).reshape(-1, 2)
        state = {"quant_type": kind, "blocksize": _GROUP, "dtype": "float32"}
        text = json.dumps({**state, "shape": list(weight.shape)}).encode()
        return {
            "weight": (codes[:, 0] << 4 | codes[:, 1])[:, None],
            "weight.absmax": absmax,
            "weight.quant_map": codes_of,
            f"weight.quant_state.bitsandbytes__{kind}": np.frombuffer(text, np.uint8).copy(),
        }

    return pack


def _eight_bits(weight: Matrix) -> Tensors:
    largest = np.abs(weight).max(-1)
    return {
        "weight": np.rint(weight * (127 / largest[:, None])).astype(np.int8),
        "SCB": largest.astype(np.float32),
        "weight_format": np.array(0, np.uint8),
    }


def _fp4_codes(values: Matrix) -> Matrix:
    """Pairs of codes with their signs in an octet, the first in the lower half."""
    codes = _nearest(np.abs(values), _E2M1) | (np.signbit(values).astype(np.uint8) << 3)
    pairs = codes.reshape(len(values), -1, 2)
    packed: Matrix = pairs[..., 0] | pairs[..., 1] << 4
    return packed


def _mxfp4(weight: Matrix) -> Tensors:
    groups = weight.reshape(len(weight), -1, 32)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))) - 2
    scaled = groups / np.exp2(exponents)[..., None]
    return {
        "weight_packed": _fp4_codes(scaled.reshape(weight.shape)),
        "weight_scale": (exponents + 127).astype(np.uint8),
    }


def _nvfp4(weight: Matrix) -> Tensors:
    groups = weight.reshape(len(weight), -1, 16)
    whole = np.float32(448 * 6 / np.abs(weight).max())
    scales = (np.abs(groups).max(-1) / 6 * whole).astype(ml_dtypes.float8_e4m3fn)
    steps = scales.astype(np.float32) / whole
    return {
        "weight_packed": _fp4_codes((groups / steps[..., None]).reshape(weight.shape)),
        "weight_scale": scales,
        "weight_global_scale": whole.reshape(1),
    }


def _by_channel(weight: Matrix) -> Tensors:
    scales = (np.abs(weight).max(-1, keepdims=True) / 7).astype(np.float32)
    return {
        "weight_packed": packed_words(np.rint(weight / scales).clip(-8, 7) + 8),
        "weight_scale": scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }


def _act_order(weight: Matrix) -> Tensors:
    """Columns of a group lie anywhere, as where the largest activations come first."""
    outputs, inputs = weight.shape
    order = np.random.default_rng(5).permutation(inputs)
    groups = np.empty(inputs, np.int32)
    groups[order] = np.arange(inputs) // _GROUP
    sorted_ = weight[:, order].reshape(outputs, -1, _GROUP)
    low, high = sorted_.min(-1).clip(None, 0), sorted_.max(-1).clip(0, None)
    scales = ((high - low) / 14).astype(np.float16)
    zeros = np.rint(-low / scales).clip(1, 15)
    integers = np.rint(weight / scales[:, groups]) + zeros[:, groups]
    return {
        "qweight": np.ascontiguousarray(packed_words(integers.clip(0, 15)).T),
        "qzeros": packed_words(zeros.T - 1),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": groups,
    }


_BITSANDBYTES: Final = {"quant_method": "bitsandbytes"}
_COMPRESSED: Final = {"quant_method": "compressed-tensors"}
_METHODS: Final[dict[str, tuple[dict[str, Any], Callable[[Matrix], Tensors]]]] = {
    "bitsandbytes int8": ({**_BITSANDBYTES, "load_in_8bit": True}, _eight_bits),
    "bitsandbytes nf4": ({**_BITSANDBYTES, "load_in_4bit": True}, _four_bits(_NF4, "nf4")),
    "bitsandbytes fp4": ({**_BITSANDBYTES, "load_in_4bit": True}, _four_bits(_FP4, "fp4")),
    "GPTQ, act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": True},
        _act_order,
    ),
    "W4A16 by channel": ({**_COMPRESSED, "format": "pack-quantized"}, _by_channel),
    "NVFP4": ({**_COMPRESSED, "format": "nvfp4-pack-quantized"}, _nvfp4),
    "MXFP4 of a folder": ({**_COMPRESSED, "format": "mxfp4-pack-quantized"}, _mxfp4),
}
METHODS: Final = tuple(_METHODS)


def quantised_layers(tensors: Tensors, method: str) -> Quantised:
    """What a config says of a method, and tensors whose linear layers are in it."""
    stated, pack = _METHODS[method]
    found: Tensors = {}
    for name, values in tensors.items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix("weight")
            found |= {f"{module}{part}": packed for part, packed in pack(values).items()}
        else:
            found[name] = values
    return stated, found
