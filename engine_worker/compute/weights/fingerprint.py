"""A name for "the same model": equal fingerprints may continue each other's streams."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.file_digests import digest_of
from engine_worker.compute.weights.lora import CONFIG_NAME as ADAPTER_CONFIG
from engine_worker.core.choice.batch import ProgressCallback

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


def fingerprint(
    folder: Path,
    parts: Mapping[str, str],
    lora: Path | None = None,
    *,
    cache_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> str:
    """Hashes what decides a model's output.

    SHA-256 over `parts`, the config files, and of each file of weights its name and all its bytes
    (see `digest_of`). Names and dates of folders don't count.

    Args:
        folder: A model folder with safetensors weights.
        parts: What else decides, by name: types, the tokenizer, the chat template.
        lora: Folder of an adapter that is merged into the weights.
        cache_dir: Where hashes of files are kept.
        progress: Called while files are hashed, with 0 and which.

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
    for file in checkpoint.files:

        def told(done: float, name: str = file.name) -> None:
            if progress is not None:
                progress(0.0, f"hashed {done:.0%} of {name}, once")

        _add(digest, file.name, digest_of(file, cache_dir, told).encode())
    return digest.hexdigest()


def _add(digest: _Hash, name: str, content: bytes) -> None:
    """Adds one named part; the length keeps neighbours from running into each other."""
    digest.update(f"{name}:{len(content)}:".encode())
    digest.update(content)
