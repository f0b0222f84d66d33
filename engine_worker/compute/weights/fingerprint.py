"""A name for "the same model": equal fingerprints may continue each other's streams."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.lora import CONFIG_NAME as ADAPTER_CONFIG
from engine_worker.compute.weights.tensor_info import TensorInfo

WHOLE_BYTES = 64 * 2**20
"""Checkpoints up to this size are hashed whole, which takes well below a second."""
NUM_SAMPLES = 16
SAMPLE_BYTES = 4096
_BESIDE_WEIGHTS = (
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fingerprint(folder: Path, parts: Mapping[str, str], lora: Path | None = None) -> str:
    """Hashes what decides a model's output.

    SHA-256 over `parts`, the config files, and of each safetensors file its size, its header and
    its content. Content is taken whole while all files together hold at most `WHOLE_BYTES`. Of
    larger checkpoints each tensor gives `NUM_SAMPLES` evenly spread windows of `SAMPLE_BYTES`
    (small tensors whole): training changes every tensor almost everywhere, so other weights give
    another fingerprint, but an edit of a few bytes by hand may go unseen. Names and dates of
    folders don't count.

    Args:
        folder: A model folder with safetensors weights.
        parts: What else decides, by name: types, the tokenizer, the chat template.
        lora: Folder of an adapter that is merged into the weights.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelLoadError: The checkpoint cannot be opened (see `open_checkpoint`).
    """
    checkpoint = open_checkpoint(folder, lora)
    digest = hashlib.sha256()
    for name, text in sorted(parts.items()):
        _add(digest, name, text.encode("utf-8", "surrogatepass"))
    for name in _BESIDE_WEIGHTS:
        path = folder / name
        if path.is_file():
            _add(digest, name, path.read_bytes())
    if lora is not None:
        _add(digest, ADAPTER_CONFIG, (lora / ADAPTER_CONFIG).read_bytes())
    total_bytes = sum(file.stat().st_size for file in checkpoint.files)
    for file in checkpoint.files:
        _add(digest, file.name, str(file.stat().st_size).encode())
        _add_file(digest, checkpoint, file, whole=total_bytes <= WHOLE_BYTES)
    return digest.hexdigest()


def _add(digest: _Hash, name: str, content: bytes) -> None:
    """Adds one named part; the length keeps neighbours from running into each other."""
    digest.update(f"{name}:{len(content)}:".encode())
    digest.update(content)


def _add_file(digest: _Hash, checkpoint: Checkpoint, file: Path, *, whole: bool) -> None:
    tensors = [
        stored
        for tensor in checkpoint.tensors.values()
        for stored in tensor.stored
        if stored.file == file
    ]
    with file.open("rb") as stream:
        if whole:
            while chunk := stream.read(2**20):
                digest.update(chunk)
            return
        header_bytes = min((tensor.start for tensor in tensors), default=0)
        _add(digest, "header", stream.read(header_bytes))
        for tensor in tensors:
            for start, end in _windows(tensor):
                stream.seek(start)
                digest.update(stream.read(end - start))


def _windows(tensor: TensorInfo) -> Iterator[tuple[int, int]]:
    """Byte ranges of a tensor that are sampled; the first and the last bytes are among them."""
    num_bytes = tensor.end - tensor.start
    if num_bytes <= NUM_SAMPLES * SAMPLE_BYTES:
        yield tensor.start, tensor.end
        return
    for index in range(NUM_SAMPLES):
        start = tensor.start + index * (num_bytes - SAMPLE_BYTES) // (NUM_SAMPLES - 1)
        yield start, start + SAMPLE_BYTES
