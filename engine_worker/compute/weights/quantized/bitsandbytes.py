"""bitsandbytes: nf4 and fp4 in blocks, whose scales may be quantised themselves, and int8 by rows.

Source: bitsandbytes 0.50, functional.py (`QuantState`, `dequantize_4bit`) and nn/modules.py.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.weights.quantized.derived import (
    DerivedTensor,
    StoredTensors,
    broken,
    derived_info,
    matrix,
    of_shape,
    of_type,
)
from engine_worker.compute.weights.tensor_info import ReadTensor, TensorInfo
from engine_worker.errors import ModelConfigError

_STATES: Final = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_MAX_STATE_BYTES: Final = 2**16
_CODES_OF_4_BITS, _CODES_OF_8_BITS = 16, 256
_LARGEST_INT8: Final = np.float32(127)


def read_bitsandbytes(stored: StoredTensors, _: ConfigFields) -> Iterator[DerivedTensor]:
    """`X` with `X.absmax`, `X.quant_map` and a state in JSON; or `weight` in int8 with `SCB`.

    Raises:
        CheckpointError: A part is missing, or the shapes disagree.
    """
    for suffix in _STATES:
        for name, state in stored.ending_in(suffix):
            yield _four_bits(stored, name, state)
    for module, scales in stored.ending_in(".SCB"):
        weight = stored.need(f"{module}.weight", scales, "I8")
        outputs, _inputs = matrix(weight)
        of_shape(of_type(scales, "F32", "F16", "BF16"), (outputs,))
        form = stored.get(f"{module}.weight_format")
        if form is not None and np.any(stored.values(form)):
            raise broken(form, "names an order of rows and columns that is not read, only rows")
        yield DerivedTensor(
            derived_info(weight.name, "F32", weight.shape, weight, scales, form),
            _int8_reader(weight, scales),
        )


def _int8_reader(weight: TensorInfo, scales: TensorInfo) -> Any:
    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = read(weight.name).astype(np.float32)
        values *= (read(scales.name).astype(np.float32) / _LARGEST_INT8)[:, None]
        return values

    return compute


@dataclass(frozen=True, slots=True)
class _State:
    """What the JSON of a tensor says.

    Attributes:
        shape: Of what it stands for.
        block_size: Numbers that share a scale.
        nested_block_size: Scales that share one; None where they are not quantised.
        nested_offset: Added to the scales.
    """

    shape: tuple[int, ...]
    block_size: int
    nested_block_size: int | None
    nested_offset: float


def _read_state(stored: StoredTensors, state: TensorInfo) -> _State:
    of_type(state, "U8", "I8")
    if state.end - state.start > _MAX_STATE_BYTES:
        raise broken(state, f"is larger than {_MAX_STATE_BYTES} bytes")
    try:
        values = json.loads(stored.values(state).tobytes())
        shape = tuple(values["shape"])
        offset = float(values.get("nested_offset") or 0.0)
        if not all(isinstance(size, int) and 0 < size < 2**40 for size in shape) or not shape:
            raise ValueError(f"shape {shape!r:.80}")
        if not math.isfinite(offset):
            raise ValueError(f"offset {offset}")
        fields = ConfigFields(values, "its state")
        nested = fields.size("nested_blocksize") if fields.present("nested_blocksize") else None
        return _State(shape, fields.size("blocksize"), nested, offset)
    except (
        *(ValueError, TypeError, KeyError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise broken(state, f"holds no state of a quantised tensor ({error!r:.120})") from error
    except ModelConfigError as error:
        raise broken(state, f"holds no state of a quantised tensor ({error})") from error


def _four_bits(stored: StoredTensors, name: str, state_info: TensorInfo) -> DerivedTensor:
    weight = of_type(stored.need(name, state_info))
    state = _read_state(stored, state_info)
    count = int(np.prod(state.shape, dtype=object))
    if weight.end - weight.start != -(-count // 2):
        raise broken(
            weight,
            f"has {weight.end - weight.start} bytes, but {list(state.shape)} takes "
            f"{-(-count // 2)} in 4 bits",
        )
    num_blocks = -(-count // state.block_size)
    codes = of_shape(
        stored.need(f"{name}.quant_map", weight, "F32", "F16", "BF16"), (_CODES_OF_4_BITS,)
    )
    absmax = of_shape(stored.need(f"{name}.absmax", weight), (num_blocks,))
    nested: tuple[TensorInfo, ...] = ()
    if state.nested_block_size is not None:
        of_type(absmax, "U8")
        num_nested = -(-num_blocks // state.nested_block_size)
        nested = (
            of_shape(stored.need(f"{name}.nested_absmax", weight, "F32"), (num_nested,)),
            of_shape(stored.need(f"{name}.nested_quant_map", weight, "F32"), (_CODES_OF_8_BITS,)),
        )
    else:
        of_type(absmax, "F32", "F16", "BF16")

    def compute(read: ReadTensor) -> npt.NDArray[np.float32]:
        scales = read(absmax.name)
        if nested:
            coarse = np.repeat(read(nested[0].name), state.nested_block_size or 1)[:num_blocks]
            scales = read(nested[1].name)[scales] * coarse + np.float32(state.nested_offset)
        scales = scales.astype(np.float32)
        table = read(codes.name).astype(np.float32)
        pairs = np.stack([table[np.arange(256) >> 4], table[np.arange(256) & 15]], axis=-1)
        octets = np.ascontiguousarray(read(weight.name)).reshape(-1).view(np.uint8)
        values = pairs[octets].reshape(-1)[:count]
        whole = count // state.block_size * state.block_size
        blocks = values[:whole].reshape(-1, state.block_size)
        blocks *= scales[: len(blocks), None]
        values[whole:] *= scales[-1]
        return values.reshape(state.shape)

    parts = (weight, absmax, codes, *nested, state_info)
    return DerivedTensor(derived_info(name, "F32", state.shape, *parts), compute)
