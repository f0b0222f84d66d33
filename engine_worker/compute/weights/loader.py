"""Streams the weights of a checkpoint onto the device, one tensor at a time, without torch."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.compute.memory.host_memory import DeviceArrays
from engine_worker.compute.models.decoder import (
    DecoderGraph,
    DecoderWeights,
    Leaves,
    Parameter,
    declare,
)
from engine_worker.compute.models.families.registry import family_of
from engine_worker.compute.models.integer_blocks import (
    BlockFormat,
    BlockMatrix,
    common_format,
    joined,
)
from engine_worker.compute.models.tensors import Source
from engine_worker.compute.weights.checkpoint import (
    Checkpoint,
    have_same_bytes,
    open_checkpoint,
)
from engine_worker.compute.weights.file_digests import FileHashes
from engine_worker.compute.weights.sources import is_ignorable, weight_sources
from engine_worker.compute.weights.tensor_info import DTYPE_SIZES, ReadBlocks, ReadTensor
from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.errors import CheckpointError, UnsupportedFormatError

logger = logging.getLogger("penstock.engine.weights")

_NAMED_IN_LOG = 5
_WAY_OUT = "use the config.json and all files of one model"
_MATRIX_AXES, _STACK_AXES = 2, 3
_LAYER = re.compile(r"(.*?\.\d+)\.")
_COMPUTED_WITH = (".weight", ".bias", "sinks")
"""Ends of tensors that a layer can't do without; scales of a cache, say, it can."""
_QUANTIZED_SUFFIXES = {".qweight": "AWQ or GPTQ", ".qzeros": "AWQ or GPTQ", ".g_idx": "GPTQ"}


def load_weights(
    folder: Path,
    graph: DecoderGraph,
    *,
    device: jax.Device | jax.sharding.Sharding | None = None,
    progress: ProgressCallback | None = None,
) -> DecoderWeights:
    """Loads every weight of a decoder.

    All headers are checked first, so a checkpoint that doesn't fit is refused at once. Then one
    weight after the other is read, joined (q|k|v, gate|up), cast to `graph.dtype` and put on the
    device; the host never holds more than one of them.

    A head of its own in the file goes before a config that ties it to the embedding, as in
    transformers 5, and is told in the log.

    Args:
        folder: A Hugging Face model folder with safetensors files.
        graph: The decoder declared from the folder's config.
        device: Where the weights go; None is JAX's default device.
        progress: Called after each weight with the share of all bytes loaded.

    Returns:
        The graph with its arrays: `graph`, or one whose head is not tied after all.

    Raises:
        UnsupportedFormatError: The weights are in a format that is not read.
        CheckpointError: A file is broken or doesn't fit the config; names file and tensor.
    """
    checkpoint = open_checkpoint(folder)
    graph = with_own_head(graph, checkpoint)
    spec = graph.spec
    leaves = load_leaves(
        checkpoint,
        graph.parameters,
        weight_sources(graph, checkpoint.tensors),
        architecture=spec.architecture,
        is_ignorable=lambda name: is_ignorable(name, spec),
        device=device,
        progress=progress,
    )
    return DecoderWeights(graph, leaves)


def with_own_head(graph: DecoderGraph, checkpoint: Checkpoint) -> DecoderGraph:
    """The graph, or one whose head is not tied where the checkpoint has another one; logs that."""
    spec = graph.spec
    if not spec.tied_head:
        return graph
    sources = family_of(spec).tensors(spec, checkpoint.tensors.keys())
    (head,), (embedding,) = sources["head.weight"], sources["embedding.weight"]
    if not _are_different(checkpoint, head.name, embedding.name):
        return graph
    logger.warning(
        "%s: config.json says tie_word_embeddings, but %s is there and differs from %s; it is used",
        checkpoint.listing,
        head.name,
        embedding.name,
    )
    return declare(replace(spec, tied_head=False), graph.dtype)


def _are_different(checkpoint: Checkpoint, head_name: str, embedding_name: str) -> bool:
    """Whether a checkpoint holds an output head that is not the embedding matrix once more."""
    head = checkpoint.tensors.get(head_name)
    embedding = checkpoint.tensors.get(embedding_name)
    # Of another shape it could be no head of this vocabulary.
    if head is None or embedding is None or head.shape != embedding.shape:
        return False
    return not have_same_bytes(head, embedding)


def load_leaves(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    sources: Sequence[tuple[Source, ...]],
    *,
    architecture: str,
    is_ignorable: Callable[[str], bool],
    device: jax.Device | jax.sharding.Sharding | None = None,
    progress: ProgressCallback | None = None,
    hashes: FileHashes | None = None,
) -> Leaves:
    """The part of `load_weights` that any kind of model shares.

    Args:
        checkpoint: Where the tensors are.
        parameters: The model's weights.
        sources: For each weight the tensors that fill it.
        architecture: For messages.
        is_ignorable: Whether a tensor that fills no weight is one that checkpoints rightly hold.
        device: As in `load_weights`.
        progress: As in `load_weights`.
        hashes: Of the checkpoint's files, which are hashed as they are read.

    Returns:
        Arrays, aligned with `parameters`.

    Raises:
        ModelLoadError: As in `load_weights`.
    """
    leaves: list[jax.Array] = []
    loaded_bytes, size_bytes = 0, sum(parameter.size_bytes for parameter in parameters)
    with open_weights(
        checkpoint,
        parameters,
        sources,
        architecture=architecture,
        is_ignorable=is_ignorable,
        hashes=hashes,
    ) as reader:
        arrays = DeviceArrays(parameters, device)
        for index, parameter in enumerate(parameters):
            leaves.append(arrays.put(reader.read(index)))
            loaded_bytes += parameter.size_bytes
            if progress is not None:
                progress(loaded_bytes / size_bytes, f"loaded {parameter.path}")
    return tuple(leaves)


def stored_formats(graph: DecoderGraph, checkpoint: Checkpoint) -> dict[str, BlockFormat]:
    """The weights that a checkpoint keeps as integers in blocks, and how all their parts are held.

    Args:
        graph: The declared decoder.
        checkpoint: Of it.

    Returns:
        By the path of the weight, a matrix or those of all experts; `WeightReader.read_blocks`
        reads it so, without loss.
    """
    kept = checkpoint.block_formats
    if not kept:
        return {}
    transposed = checkpoint.transposed_blocks
    sources = weight_sources(graph, checkpoint.tensors)
    found = {}
    for parameter, parts in zip(graph.parameters, sources, strict=True):
        is_in_rows = all(_is_in_rows(part, is_kept_so=part.name in transposed) for part in parts)
        is_kept = is_in_rows and all(part.name in kept for part in parts)
        if is_kept and _are_matrices(parameter, parts):
            form = common_format([kept[part.name] for part in parts])
            if form is not None:
                found[parameter.path] = form
    return found


def _is_in_rows(part: Source, *, is_kept_so: bool) -> bool:
    """Whether a weight's rows are a tensor's as they are kept, only in another order.

    Args:
        part: Of the weight.
        is_kept_so: The tensor is read transposed, and kept as the weight is.
    """
    if part.is_transposed:
        return is_kept_so
    return not is_kept_so and not part.has_halves_in_turn


def _are_matrices(parameter: Parameter, parts: Sequence[Source]) -> bool:
    """Whether tensors are a matrix, a stack of them, or equally many are each matrix of a stack."""
    if any(len(part.shape) > _MATRIX_AXES for part in parts):
        (first, *others) = parts
        axes = len(first.shape), len(parameter.shape)
        return axes == (_STACK_AXES, _STACK_AXES) and not others and first.rows is None
    if len(parameter.shape) == _STACK_AXES:
        return len(parts) % parameter.shape[0] == 0
    return len(parameter.shape) == _MATRIX_AXES


class WeightReader:
    """Reads declared weights one at a time; made by `open_weights`."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        sources: Sequence[tuple[Source, ...]],
        read: ReadTensor,
        read_blocks: ReadBlocks,
        announce: Callable[[str], None],
    ) -> None:
        self._parameters = parameters
        self._sources = sources
        self._read = read
        self._read_blocks = read_blocks
        self._announce = announce

    def shape(self, index: int) -> tuple[int, ...]:
        """Of a declared weight."""
        return self._parameters[index].shape

    def read_blocks(self, index: int, form: BlockFormat) -> Iterator[BlockMatrix]:
        """A weight of `stored_formats` as it is kept: its one matrix, or each expert's in turn.

        Raises:
            CheckpointError: It can't be read.
        """
        parts, shape = self._sources[index], self._parameters[index].shape
        if len(parts[0].shape) == _STACK_AXES:
            for expert in range(shape[0]):
                yield joined([self._rows_in_blocks(parts[0], expert)], form)
            return
        num_matrices = shape[0] if len(shape) == _STACK_AXES else 1
        step = len(parts) // num_matrices
        for first in range(0, len(parts), step):
            found = [self._rows_in_blocks(part) for part in parts[first : first + step]]
            yield joined(found, form)

    def read_rows_in_blocks(
        self, index: int, form: BlockFormat, first: int, end: int
    ) -> BlockMatrix:
        """As `read_rows`, of a weight of `stored_formats`."""
        (part,) = self._sources[index]
        self._announce(part.name)
        return joined([self._read_blocks(part.name, rows=(first, end))], form)

    def _rows_in_blocks(self, part: Source, expert: int | None = None) -> BlockMatrix:
        self._announce(part.name)
        matrix = self._read_blocks(part.name, expert)
        if part.has_halves_in_turn:
            matrix = matrix.each(lambda rows: np.concatenate([rows[::2], rows[1::2]]))
        if part.pairs:
            matrix = matrix.each(partial(_pairs_apart, part=part))
        if part.rows is not None:
            matrix = matrix.each(partial(_some_rows, rows=part.rows, period=part.period))
        return matrix

    def read(self, index: int) -> npt.NDArray[Any]:
        """A weight on the host, in its own type; fused weights are filled part by part.

        Raises:
            CheckpointError: It can't be read.
        """
        parameter, parts = self._parameters[index], self._sources[index]
        value = np.empty(parameter.shape, parameter.dtype)
        rows = _as_rows(value)
        row = 0
        for part in parts:
            self._announce(part.name)
            values = self._read(part.name)
            if part.has_halves_in_turn:
                values = np.concatenate([values[..., ::2], values[..., 1::2]], axis=-1)
            if part.is_transposed:
                values = np.swapaxes(values, -1, -2)
            # A vector may be a matrix of one row in the file.
            values = values.reshape(-1) if value.ndim == 1 else _as_rows(values)
            if part.pairs:
                values = _pairs_apart(values, part)
            if part.rows is not None:
                values = _some_rows(values, part.rows, part.period)
            rows[row : row + len(values)] = values
            row += len(values)
        assert row == len(rows), parameter.path
        return value

    def read_rows(self, index: int, first: int, end: int) -> npt.NDArray[Any]:
        """Some rows of a weight of `rows_at_a_time`, in its own type.

        Raises:
            CheckpointError: They can't be read.
        """
        (part,) = self._sources[index]
        self._announce(part.name)
        values = self._read(part.name, (first, end))
        return values.astype(self._parameters[index].dtype, copy=False)


def _some_rows(
    values: npt.NDArray[Any], rows: tuple[int, int], period: int | None
) -> npt.NDArray[Any]:
    """Rows of a matrix or vector, or those of each of its groups of `period` rows."""
    groups = values.reshape(-1, period or len(values), *values.shape[1:])
    return groups[:, rows[0] : rows[1]].reshape(-1, *values.shape[1:])


def _pairs_apart(values: npt.NDArray[Any], part: Source) -> npt.NDArray[Any]:
    """Rows of a matrix or vector, pairs of neighbours as halves; see `Source.pairs`."""
    assert part.period is not None, part.name
    groups = values.reshape(-1, part.period, *values.shape[1:])
    paired = groups[:, : part.pairs]
    halves = (paired[:, ::2], paired[:, 1::2], groups[:, part.pairs :])
    return np.concatenate(halves, axis=1).reshape(values.shape)


def _as_rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A tensor as a matrix: all axes but the last are rows. A vector stays one."""
    return values if values.ndim <= 1 else values.reshape(-1, values.shape[-1])


@contextmanager
def open_weights(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    sources: Sequence[tuple[Source, ...]],
    *,
    architecture: str,
    is_ignorable: Callable[[str], bool],
    kept: Mapping[str, BlockFormat] | None = None,
    hashes: FileHashes | None = None,
) -> Iterator[WeightReader]:
    """A reader of weights whose tensors are all there and of the right shapes.

    Args: As in `load_leaves`, and
        kept: The weights that are read by `read_blocks`, for the log.

    Raises:
        ModelLoadError: As in `load_weights`.
    """
    _check(checkpoint, sources, architecture, is_ignorable)
    _log_quantized(checkpoint, parameters, sources, kept or {})

    def announce(name: str) -> None:
        if hashes is not None:
            for stored in checkpoint.tensors[name].stored:
                hashes.want(stored.file, stored.start, stored.end)

    with checkpoint.reading() as read, checkpoint.reading_blocks() as read_blocks:
        yield WeightReader(parameters, sources, read, read_blocks, announce)


def _log_quantized(
    checkpoint: Checkpoint,
    parameters: Sequence[Parameter],
    sources: Sequence[tuple[Source, ...]],
    kept: Mapping[str, BlockFormat],
) -> None:
    """Says what becomes of a checkpoint's quantised tensors."""
    quantized = frozenset(checkpoint.quantized)
    num_kept = num_others = 0
    for parameter, parts in zip(parameters, sources, strict=True):
        number = sum(part.name in quantized for part in parts)
        if parameter.path in kept:
            num_kept += number
        else:
            num_others += number
    if num_kept or num_others:
        logger.info(
            "%s: stored as %s; %d tensors stay as they are (%s), %d are dequantised as they are"
            " read",
            checkpoint.listing,
            checkpoint.stored_as,
            num_kept,
            ", ".join(sorted({form.name for form in kept.values()})) or "none",
            num_others,
        )


def _check(
    checkpoint: Checkpoint,
    sources: Sequence[tuple[Source, ...]],
    architecture: str,
    is_ignorable: Callable[[str], bool],
) -> None:
    for name in checkpoint.tensors:
        for suffix, kind in _QUANTIZED_SUFFIXES.items():
            if name.endswith(suffix):
                raise UnsupportedFormatError(
                    f"{checkpoint.tensors[name].file}: tensor {name!r} is quantised ({kind}), a "
                    "format that is not read; use the original model"
                )
    wanted = {source.name: source for parts in sources for source in parts}
    for source in wanted.values():
        _check_source(checkpoint, source)
    extra = [name for name in checkpoint.tensors if name not in wanted and not is_ignorable(name)]
    served = _layers_of(wanted)
    # An unknown tensor of a GGUF file keeps its name there.
    served |= {f"blk.{layer.rpartition('.')[2]}" for layer in served}
    missed = [
        name
        for name in extra
        if name.endswith(_COMPUTED_WITH) and not served.isdisjoint(_layers_of([name]))
    ]
    for name in _not_of_zeros(checkpoint, missed):
        raise CheckpointError(
            f"{checkpoint.tensors[name].file}: tensor {name!r} has no place in {architecture} "
            "as config.json describes it, and without it the layer would compute something "
            "else; correct config.json if it leaves a bias or a norm out, or use a model of an "
            "architecture that is supported"
        )
    if extra:
        logger.warning(
            "%s: %d tensors have no place in %s and are not used: %s",
            checkpoint.listing,
            len(extra),
            architecture,
            ", ".join(sorted(extra)[:_NAMED_IN_LOG]),
        )


def _not_of_zeros(checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[str]:
    """Tensors without which a layer computes something else.

    Biases of zeros are not: quantisers (AutoGPTQ) save one with each module, also of a model that
    has none.
    """
    if not names:
        return
    with checkpoint.reading() as read:
        for name in names:
            tensor = checkpoint.tensors[name]
            is_vector = len(tensor.shape) == 1 and tensor.dtype in DTYPE_SIZES
            if not (name.endswith(".bias") and is_vector) or np.any(read(name)):
                yield name


def _layers_of(names: Iterable[str]) -> set[str]:
    """What stands before the names of layers' tensors: `model.layers.3`."""
    return {found[1] for name in names if (found := _LAYER.match(name))}


def _check_source(checkpoint: Checkpoint, source: Source) -> None:
    tensor = checkpoint.tensors.get(source.name)
    if tensor is None:
        raise CheckpointError(
            f"{checkpoint.listing}: tensor {source.name!r} is missing; {_WAY_OUT}"
        )
    if tensor.dtype not in DTYPE_SIZES:
        raise CheckpointError(
            f"{tensor.file}: tensor {source.name!r} is {tensor.dtype}; "
            f"{', '.join(DTYPE_SIZES)} are read"
        )
    if tensor.shape != source.shape:
        raise CheckpointError(
            f"{tensor.file}: tensor {source.name!r} has shape {list(tensor.shape)}, the config "
            f"asks for {list(source.shape)}; {_WAY_OUT}"
        )
