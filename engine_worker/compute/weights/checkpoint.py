"""What a checkpoint is to whoever loads it, and which kind of files a model folder holds."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.weights.gguf.checkpoint import find_gguf
from engine_worker.compute.weights.lora import AdaptedCheckpoint
from engine_worker.compute.weights.quantized.methods import dequantized, find_quantization
from engine_worker.compute.weights.safetensors_files import (
    INDEX_NAME,
    SINGLE_NAME,
    find_safetensors,
)
from engine_worker.compute.weights.tensor_info import ReadBlocks, ReadTensor, TensorInfo
from engine_worker.errors import CheckpointError, UnsupportedFormatError

_COMPARED_BYTES = 2**24


class Checkpoint(Protocol):
    """All files of a model's weights and every tensor in them, under Hugging Face's names.

    Formats that keep numbers in another way (quantised, merged from several files) implement it
    with the tensors that they stand for.
    """

    @property
    def listing(self) -> Path:
        """The file that says which tensors there are, for messages."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that holds numbers."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By name."""

    @property
    def stored_as(self) -> str:
        """How the files keep most weights, `GGUF Q4_K_M`; empty where these are plain numbers."""

    def reading(self) -> AbstractContextManager[ReadTensor]:
        """Opens the files, to read tensors from."""

    @property
    def quantized(self) -> Collection[str]:
        """Tensors whose numbers the files keep in fewer bits than `reading` gives them."""

    @property
    def block_formats(self) -> Mapping[str, BlockFormat]:
        """Matrices that are kept as integers in blocks, by name; `reading` gives them as floats.

        Also stacks of them [E, out, in], one for each expert.
        """

    @property
    def transposed_blocks(self) -> Collection[str]:
        """Those that `reading` gives as [.., in, out] where [.., out, in] is kept."""

    def reading_blocks(self) -> AbstractContextManager[ReadBlocks]:
        """Opens the files, to read the matrices of `block_formats` as they are kept."""


def open_checkpoint(folder: Path, lora: Path | None = None) -> Checkpoint:
    """Reads the headers of a model's weights.

    Args:
        folder: A model folder.
        lora: Folder of a LoRA adapter that is merged into them.

    Returns:
        Every tensor by name; sizes and offsets are checked against the files. Quantised ones are
        those that they stand for.

    Raises:
        UnsupportedFormatError: There are weights, but in a format that is not read.
        CheckpointError: No weights, or a broken file; names the file, and the tensor if any.
        ModelConfigError: The adapter's config is missing or contradicts itself.
    """
    checkpoint = _open_model(folder)
    return checkpoint if lora is None else AdaptedCheckpoint(checkpoint, lora)


def _open_model(folder: Path) -> Checkpoint:
    found = find_safetensors(folder)
    if found is not None:
        quantization = find_quantization(folder)
        return found if quantization is None else dequantized(found, quantization)
    in_gguf = find_gguf(folder)
    if in_gguf is None:
        raise _nothing_readable(folder)
    return in_gguf


def _nothing_readable(folder: Path) -> CheckpointError | UnsupportedFormatError:
    if not folder.is_dir():
        return CheckpointError(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")):
            return UnsupportedFormatError(
                f"{folder}: {name} is a pickle, which can run code and is never loaded; `penstock "
                "convert` makes a folder with safetensors of it"
            )
    return CheckpointError(f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there")


def have_same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors hold the same numbers in the same type.

    Raises:
        CheckpointError: A file can't be read.
    """
    if first.made_of or second.made_of:
        # Computed alike from equal parts, or at least not known to be the same.
        return len(first.stored) == len(second.stored) and all(
            have_same_bytes(one, other)
            for one, other in zip(first.stored, second.stored, strict=True)
        )
    num_bytes = first.end - first.start
    if first.dtype != second.dtype or num_bytes != second.end - second.start:
        return False
    try:
        with first.file.open("rb") as one, second.file.open("rb") as other:
            one.seek(first.start)
            other.seek(second.start)
            while num_bytes:
                step = min(num_bytes, _COMPARED_BYTES)
                if one.read(step) != other.read(step):
                    return False
                num_bytes -= step
    except OSError as error:
        raise CheckpointError(f"{first.file} or {second.file}: cannot be read: {error}") from error
    return True
