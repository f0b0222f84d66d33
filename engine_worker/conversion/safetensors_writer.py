"""Writes one safetensors file, one tensor at a time."""

import json
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_worker.compute.weights.tensor_info import STORED_DTYPES

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""By name: the type as safetensors spells it, and the shape."""


def write_safetensors(
    path: Path, shapes: Shapes, tensors: Iterable[tuple[str, npt.NDArray[Any]]]
) -> None:
    """Writes a file that is there when all of it is, and else never was.

    Args:
        path: The file.
        shapes: Of every tensor, in the order of the file.
        tensors: The same ones in the same order.

    Raises:
        OSError: It can't be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=object)) * STORED_DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    try:
        with unfinished.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)))
            stream.write(text)
            following = iter(tensors)
            for wanted, (dtype, shape) in shapes.items():
                name, values = next(following)
                assert name == wanted, (name, wanted)
                assert (values.dtype, values.shape) == (STORED_DTYPES[dtype], shape), name
                np.ascontiguousarray(values).tofile(stream)
                # Before the next one is read.
                del values
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
