"""A name for "the same model": equal fingerprints may continue each other's streams."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.file_digests import FileHashes
from engine_worker.compute.weights.lora import CONFIG_NAME as ADAPTER_CONFIG
from engine_worker.core.choice.batch import ProgressCallback

_BESIDE_WEIGHTS = (
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Fingerprint:
    """What decides a model's output: begun before its weights are read, complete behind them.

    SHA-256 over `parts`, the config files, and of each file of weights its name and all its bytes
    (see `file_digests.py`). Names and dates of folders don't count.

    Args:
        folder: A model folder; its config files are read now.
        parts: What else decides, by name: types, the tokenizer, the chat template.
        lora: Folder of an adapter that is merged into the weights.
    """

    def __init__(self, folder: Path, parts: Mapping[str, str], lora: Path | None = None) -> None:
        self._hash = hashlib.sha256()
        for name, text in sorted(parts.items()):
            _add(self._hash, name, text.encode("utf-8", "surrogatepass"))
        for name in _BESIDE_WEIGHTS:
            path = folder / name
            if path.is_file():
                _add(self._hash, name, path.read_bytes())
        if lora is not None:
            _add(self._hash, ADAPTER_CONFIG, (lora / ADAPTER_CONFIG).read_bytes())

    def of(self, files: Sequence[Path], digest: Callable[[Path], str]) -> str:
        """64 hexadecimal digits.

        Args:
            files: Of the checkpoint.
            digest: Of all bytes of one.
        """
        whole = self._hash.copy()
        for file in files:
            _add(whole, file.name, digest(file).encode())
        return whole.hexdigest()


def fingerprint(
    folder: Path,
    parts: Mapping[str, str],
    lora: Path | None = None,
    *,
    cache_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> str:
    """The fingerprint of a folder as it is now; its weights are read unless their hash is known.

    Args:
        folder: A model folder.
        parts: As in `Fingerprint`.
        lora: As in `Fingerprint`.
        cache_dir: Where hashes of files are kept.
        progress: Called while files are hashed, with 0 and which.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelLoadError: The checkpoint cannot be opened (see `open_checkpoint`), or was changed
            while it was hashed.
    """
    files = open_checkpoint(folder, lora).files
    begun = Fingerprint(folder, parts, lora)

    def told(done: float, name: str) -> None:
        if progress is not None:
            progress(0.0, f"hashed {done:.0%} of {name}, once")

    with FileHashes(files, cache_dir) as hashes:
        hashes.finish(told)
        return begun.of(files, hashes.digest)


def _add(digest: _Hash, name: str, content: bytes) -> None:
    """Adds one named part; the length keeps neighbours from running into each other."""
    digest.update(f"{name}:{len(content)}:".encode())
    digest.update(content)
