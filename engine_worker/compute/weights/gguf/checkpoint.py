"""A GGUF model as a `Checkpoint`: Hugging Face's tensors, dequantised when they are read."""

import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.integer_blocks import (
    BlockFormat,
    BlockMatrix,
    common_format,
    joined,
)
from engine_worker.compute.weights.gguf.blocks import (
    PLAIN,
    QUANTISED,
    has_whole_rows,
    numbers_dtype,
    of_expert,
    of_rows,
    read_numbers,
    read_vector,
)
from engine_worker.compute.weights.gguf.families import FAMILIES
from engine_worker.compute.weights.gguf.family import (
    ROPE_FACTORS,
    GgufFamily,
    Part,
    Parts,
    common_config,
    parts_of,
)
from engine_worker.compute.weights.gguf.integer_blocks import FORMATS, read_blocks
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.compute.weights.gguf.rope_factors import llama3_scaling
from engine_worker.compute.weights.stored_file import opened
from engine_worker.compute.weights.tensor_info import ReadBlocks, ReadTensor, TensorInfo
from engine_worker.errors import (
    CheckpointError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
)
from protocol.runtime.gguf_header import (
    GgufError,
    GgufFile,
    models_in,
    read_gguf_shards,
)

_FILE_TYPE: Final = "general.file_type"
_MATRIX_AXES, _STACK_AXES = 2, 3
_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """Implements `Checkpoint` with GGUF files."""

    listing: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    metadata: GgufMetadata
    parts: Parts

    @property
    def stored_as(self) -> str:
        return f"GGUF {format_name(self.metadata.files)}"

    @property
    def quantized(self) -> frozenset[str]:
        stored = self.metadata.tensors
        return frozenset(
            name for name, part in self.parts.items() if stored[part.name].type_name not in PLAIN
        )

    @property
    def block_formats(self) -> dict[str, BlockFormat]:
        formats = {name: self._block_format(part) for name, part in self.parts.items()}
        return {name: form for name, form in formats.items() if form is not None}

    @property
    def transposed_blocks(self) -> frozenset[str]:
        return frozenset(name for name, part in self.parts.items() if part.is_transposed)

    def _block_format(self, part: Part) -> BlockFormat | None:
        """How a tensor's matrix is kept, or each of its matrices; None where it isn't in blocks."""
        tensors = [self.metadata.tensors[name] for name in part.names]
        axes = len(tensors[0].shape) - (part.expert is not None)
        is_matrix = axes == _MATRIX_AXES and part.keeps_rows
        is_stack = axes == _STACK_AXES and part.keeps_rows_of_each
        if not (is_matrix or is_stack) or any(one.type_name not in FORMATS for one in tensors):
            return None
        form = common_format([FORMATS[tensor.type_name] for tensor in tensors])
        if form is None or part.change is None or not part.change.column_parts:
            return form
        return _within(form, tensors[0].shape[-1] // part.change.column_parts)

    @contextmanager
    def reading_blocks(self) -> Iterator[ReadBlocks]:
        with opened(self.files) as files:

            def read(
                name: str, expert: int | None = None, rows: tuple[int, int] | None = None
            ) -> BlockMatrix:
                part = self.parts[name]
                index = part.expert if expert is None else expert
                matrices = []
                for stored in part.names:
                    tensor = self.metadata.tensors[stored]
                    one = tensor if index is None else of_expert(tensor, index)
                    if rows is not None:
                        one = of_rows(one, *rows)
                    matrices.append(read_blocks(files[one.file].read, one))
                if part.join is not None and part.join.order is not None:
                    form = common_format([matrix.format for matrix in matrices])
                    assert form is not None, name
                    return joined(matrices, form).each(part.join.order)
                (matrix,) = matrices
                if part.change is None or part.change.is_transposition:
                    return matrix
                if part.change.column_parts:
                    form = self._block_format(part)
                    assert form is not None, name
                    matrix = joined([matrix], form)
                return matrix.each(part.change.apply)

            yield read

    @contextmanager
    def reading(self) -> Iterator[ReadTensor]:
        with opened(self.files) as files:

            def read(name: str, rows: tuple[int, int] | None = None) -> npt.NDArray[Any]:
                part = self.parts[name]
                tensor = self.metadata.tensors[part.name]
                if rows is not None:
                    tensor = of_rows(tensor, *rows)
                values = read_numbers(files[tensor.file].read, tensor, part.expert)
                if part.join is not None:
                    others = [self.metadata.tensors[other] for other in part.others]
                    found = [read_numbers(files[other.file].read, other) for other in others]
                    return part.join.apply([values, *found])
                if part.change is None:
                    return values
                try:
                    return part.change.apply(values)
                except ValueError as error:
                    raise CheckpointError(
                        f"{tensor.file}: tensor {tensor.name!r} doesn't have the heads that the"
                        f" file names: {error}"
                    ) from error

            yield read


def find_gguf(folder: Path) -> GgufCheckpoint | None:
    """The GGUF model of a folder; None where it has none.

    Raises:
        UnsupportedFormatError: There are several, or it holds numbers of a type that isn't read.
        UnsupportedArchitectureError: The family isn't served.
        CheckpointError: A broken file; names the file, and the tensor if any.
    """
    path = find_model(folder)
    return None if path is None else open_gguf(path)


def find_model(folder: Path) -> Path | None:
    """The one GGUF model of a folder, of several files the first; None where there is none.

    Raises:
        UnsupportedFormatError: There are several.
    """
    found = models_in(folder) if folder.is_dir() else ()
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UnsupportedFormatError(
            f"{folder}: there are {len(found)} models in it ({names}); name the file to serve"
        )
    return found[0] if found else None


def open_gguf(path: Path) -> GgufCheckpoint:
    """The tensors of a model by the path of its file, or of one of its files; see `find_gguf`."""
    return checkpoint_of(read_metadata(path))


def checkpoint_of(metadata: GgufMetadata) -> GgufCheckpoint:
    """The tensors of a model whose headers are read; see `find_gguf`."""
    parts = parts_of(family_of(metadata), metadata)
    return GgufCheckpoint(
        listing=metadata.path,
        files=tuple(file.path for file in metadata.files),
        tensors={name: _tensor_info(name, parts, metadata) for name in parts},
        metadata=metadata,
        parts=parts,
    )


def read_metadata(path: Path) -> GgufMetadata:
    """The headers of a model's files.

    Raises:
        CheckpointError: One is missing or broken.
        ModelConfigError: It doesn't say what it is.
    """
    try:
        return GgufMetadata(read_gguf_shards(path))
    except GgufError as error:
        raise CheckpointError(str(error)) from error


def family_of(metadata: GgufMetadata) -> GgufFamily:
    """The family of a model.

    Raises:
        UnsupportedArchitectureError: There is none; lists those that there are.
    """
    kind = metadata.values.get("general.type", "model")
    if kind != "model":
        raise UnsupportedArchitectureError(
            f"{metadata.path}: is of type {reprlib.repr(kind):.40}, not a model; name the model's"
            " own file"
        )
    families = FAMILIES.get(str(metadata.architecture), ())
    family = next((one for one in families if one.fits(metadata)), None)
    if family is None:
        raise UnsupportedArchitectureError(
            f"{metadata.path}: architecture {metadata.architecture!r:.40} is not supported in"
            f" GGUF; supported: {', '.join(FAMILIES)}"
        )
    return family


def derive_config(metadata: GgufMetadata) -> dict[str, Any]:
    """The `config.json` that the model's Hugging Face folder would have, as far as it decides.

    Raises:
        ModelLoadError: A key is missing or wrong, or the family isn't served.
    """
    family = family_of(metadata)
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **common_config(metadata),
        "dtype": _widest_dtype(metadata),
    }
    factors = read_vector(metadata.tensors.get(ROPE_FACTORS))
    if factors is not None and "rope_scaling" not in config and not family.computes_rope:
        config["rope_scaling"] = llama3_scaling(np.array(factors), config, metadata.path)
    config |= family.config(metadata)
    if metadata.has("attention.causal") and not metadata.flag("attention.causal", True):
        config["is_causal"] = False
    if family.has_positions(metadata):
        _check_rotated(metadata, config)
    return {name: value for name, value in config.items() if value is not None}


def layer_shapes(metadata: GgufMetadata) -> tuple[tuple[int, ...], ...]:
    """Of the matrices that are applied to a text's vector, [out, in] each, in order.

    Raises:
        CheckpointError: One is no matrix.
    """
    names = family_of(metadata).layers_behind
    shapes = tuple(metadata.shape(name) for name in names if name in metadata.tensors)
    if any(len(shape) != _MATRIX_AXES for shape in shapes):
        raise CheckpointError(
            f"{metadata.path}: {', '.join(names)} have the shapes {shapes}, which are no matrices"
        )
    return shapes


def read_layers_behind(metadata: GgufMetadata) -> Iterator[npt.NDArray[np.float32]]:
    """The numbers of those matrices."""
    names = family_of(metadata).layers_behind
    stored = [_stored(name, metadata) for name in names if name in metadata.tensors]
    with opened(tuple({one.file for one in stored})) as files:
        for one in stored:
            tensor = metadata.tensors[one.name]
            yield read_numbers(files[tensor.file].read, tensor).astype(np.float32)


def _check_rotated(metadata: GgufMetadata, config: dict[str, Any]) -> None:
    """Refuses a model that rotates another part of each head than its family does here.

    Raises:
        ModelConfigError: It does.
    """
    rotated = metadata.whole("rope.dimension_count", 0)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("global_head_dim") or config.get("head_dim")
    head_dim = head_dim or (width // heads if heads else 0)
    expected = round(head_dim * (config.get("partial_rotary_factor") or 1.0))
    if rotated and rotated != expected:
        raise metadata.error(
            "rope.dimension_count", f"is read as {expected} in {metadata.architecture}", rotated
        )


def format_name(files: tuple[GgufFile, ...]) -> str:
    """What the numbers are kept in, as people call it: `Q4_K_M`; if unsaid, what most bytes are."""
    from gguf.constants import LlamaFileType

    stated = files[0].metadata.get(_FILE_TYPE)
    if isinstance(stated, int) and not isinstance(stated, bool):
        names: dict[int, str] = {kind.value: kind.name for kind in LlamaFileType}
        name = names.get(stated, "")
        for prefix in ("MOSTLY_", "ALL_"):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
    sizes: dict[str, int] = {}
    for file in files:
        for tensor in file.tensors.values():
            size = tensor.end - tensor.start
            sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + size
    return max(sizes, key=lambda name: sizes[name], default="nothing")


def _within(form: BlockFormat, width: int) -> BlockFormat | None:
    """A format none of whose blocks lies across columns that are `width` apart; None for none."""
    if width % form.group_size:
        return None
    return replace(form, block_size=math.gcd(form.block_size, width))


def _tensor_info(name: str, parts: Parts, metadata: GgufMetadata) -> TensorInfo:
    part = parts[name]
    made_of = tuple(_stored(one, metadata) for one in part.names)
    tensor = metadata.tensors[part.name]
    if part.join is not None:
        try:
            shape = part.join.shape(*(one.shape for one in made_of))
        except ValueError:
            shape = ()
        if not shape or len({one.dtype for one in made_of}) > 1:
            raise CheckpointError(
                f"{tensor.file}: tensors {', '.join(part.names)} don't go together; use another"
                " file of the model"
            )
        first = made_of[0]
        return TensorInfo(name, tensor.file, first.dtype, shape, first.start, first.end, made_of)
    shape, start, end = tensor.shape, tensor.start, tensor.end
    if part.expert is not None:
        size = (end - start) // shape[0]
        start, end = start + part.expert * size, start + (part.expert + 1) * size
        shape = shape[1:]
    if part.change is not None:
        try:
            shape = part.change.shape(shape)
        except (ValueError, IndexError):
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} has the shape {list(shape)}, which"
                f" {metadata.architecture} doesn't have"
            ) from None
    dtype = numbers_dtype(tensor.type_name)
    is_matrix = part.change is None and part.expert is None and len(shape) == _MATRIX_AXES
    in_rows = is_matrix and has_whole_rows(tensor)
    return TensorInfo(name, tensor.file, dtype, shape, start, end, in_rows=in_rows)


def _stored(name: str, metadata: GgufMetadata) -> TensorInfo:
    """One tensor of the file as what it is read as."""
    tensor = metadata.tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"{metadata.path}: tensor {name!r} is missing")
    if tensor.type_name not in PLAIN and tensor.type_name not in QUANTISED:
        raise UnsupportedFormatError(
            f"{tensor.file}: tensor {tensor.name!r} is {tensor.type_name}, which is not read; use"
            f" a file of the model in {', '.join(QUANTISED[:10])} or another of"
            f" {', '.join((*PLAIN, *QUANTISED[10:]))}"
        )
    dtype = numbers_dtype(tensor.type_name)
    return TensorInfo(name, tensor.file, dtype, tensor.shape, tensor.start, tensor.end)


def _widest_dtype(metadata: GgufMetadata) -> str:
    """Of the matrices; quantised ones count as bfloat16, which is all that they are worth."""
    kinds = {tensor.type_name for tensor in metadata.tensors.values() if len(tensor.shape) > 1}
    return next((name for kind, name in _DTYPES.items() if kinds == {kind}), "bfloat16")
