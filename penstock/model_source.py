"""From what the user named to a local folder with a checkpoint that fits in memory."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from penstock.config import ModelChoice, ServeSettings
from penstock.errors import ModelError
from penstock.gguf_source import (
    STORED_BYTES,
    HubName,
    choose_files,
    config_of,
    config_of_hub,
    hub_name,
    local_file,
)
from protocol.runtime.container_limits import free_memory_bytes

_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
QUANT_METHODS = {
    "awq": 4,
    "gptq": 4,
    "compressed-tensors": 8,
    "fp8": 8,
    "fbgemm_fp8": 8,
    "mxfp4": 4,
    "bitsandbytes": 4,
}
"""Those that the engine reads, and the bits of most of their weights where the config is silent."""
_KEPT_METHODS = ("awq", "gptq", "compressed-tensors", "mxfp4")
"""Those whose weights may stay as they are."""
_KV_BYTES_PER_VALUE = 2
_BITS_BY_WEIGHT = {"int8": 8, "int4": 5}
"""Scales of groups and rows included."""
_LEAST_CONTEXT = 2048
"""Tokens: with less than that nobody serves a model; what it was made for need not fit."""
_STATEFUL_KINDS = ("linear_attention", "conv", "mamba", "mlp", "moe")
"""Kinds of layers that keep nothing of each token."""
_MEMORY_SHARE = 0.9
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class MemoryEstimate:
    """What a model will take, bytes.

    Attributes:
        weights_bytes: The checkpoint's tensors as the engine holds them.
        kv_bytes: The KV cache of one sequence of `num_tokens`.
        num_tokens: Of context: as asked for, else few, because the engine cuts a model's own
            context to what fits.
    """

    weights_bytes: int
    kv_bytes: int
    num_tokens: int

    @property
    def total_bytes(self) -> int:
        """Weights and KV together."""
        return self.weights_bytes + self.kv_bytes


def estimate_memory(
    config: Mapping[str, Any],
    checkpoint_bytes: int,
    *,
    dtype: str,
    max_model_len: int | None,
    keeps_stored: bool = False,
) -> MemoryEstimate:
    """What a checkpoint takes once loaded.

    Args:
        config: The checkpoint's `config.json`.
        checkpoint_bytes: Sum of its safetensors files; a quantised one's weights become wider.
        dtype: `auto` keeps the checkpoint's; `float32` doubles a 16-bit one, `int8` halves it.
        max_model_len: Tokens of context to hold; None is as many as memory has room for, of which
            few are counted.
        keeps_stored: Quantised weights may stay as they are (`auto` on the native kernels). Which
            of them do is for the engine to say, which refuses what doesn't fit then: this is the
            least that they take.
    """
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    is_half = stored in ("bfloat16", "float16")
    widening = 2 if dtype == "float32" and is_half else 1
    stored_bits = 16 if is_half else 32
    bits = _quantised_bits(config) or stored_bits
    weights_bytes = checkpoint_bytes * _BITS_BY_WEIGHT.get(dtype, stored_bits * widening)
    stored_bytes = config.get(STORED_BYTES)
    if stored_bytes is None and _method(config) in _KEPT_METHODS:
        stored_bytes = checkpoint_bytes
    if keeps_stored and stored_bytes is not None:
        weights_bytes = min(weights_bytes, int(stored_bytes) * bits)
    longest = max(1, int(config.get("max_position_embeddings") or _LEAST_CONTEXT))
    length = max_model_len or min(longest, _LEAST_CONTEXT)
    values = _values_of_a_token(config) * _cached_tokens(config, length)
    kv_bytes = values * _KV_BYTES_PER_VALUE * widening
    return MemoryEstimate(weights_bytes // bits, kv_bytes, length)


def _values_of_a_token(config: Mapping[str, Any]) -> int:
    """Numbers that a layer keeps of each token: keys and values, or what they are made of (MLA)."""
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    num_heads = int(config.get("num_attention_heads") or 1)
    head_dim = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // num_heads)
    return 2 * int(config.get("num_key_value_heads") or num_heads) * head_dim


def _cached_tokens(config: Mapping[str, Any], length: int) -> int:
    """Tokens that all layers together keep of one sequence, where the config says which see it."""
    num_layers = int(config.get("num_hidden_layers") or 0)
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        return num_layers * length
    window = min(length, max(1, int(config.get("sliding_window") or length)))
    by_kind = {"sliding_attention": window, **dict.fromkeys(_STATEFUL_KINDS, 0)}
    return sum(by_kind.get(str(kind), length) for kind in kinds)


def _method(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method")) if isinstance(quantization, dict) else ""


def _quantised_bits(config: Mapping[str, Any]) -> int | None:
    """Bits that a weight takes in the files of a quantised checkpoint, scales left out."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") is None:
        return None
    bits = quantization.get("bits")
    for group in (quantization.get("config_groups") or {}).values():
        bits = bits or (group.get("weights") or {}).get("num_bits")
    if quantization.get("load_in_8bit"):
        bits = 8
    bits = int(bits or QUANT_METHODS.get(str(quantization["quant_method"]), 8))
    if not 1 <= bits <= 32:
        raise ValueError(f"weights of {bits} bits")
    return bits


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def require_memory(name: str, estimate: MemoryEstimate, available_bytes: int) -> None:
    """Refuse a model that can't fit.

    Raises:
        ModelError: With what it needs, what there is, and ways out.
    """
    if estimate.total_bytes <= available_bytes * _MEMORY_SHARE:
        return
    raise ModelError(
        f"{name} needs about {_gigabytes(estimate.total_bytes)} of memory "
        f"({_gigabytes(estimate.weights_bytes)} weights, {_gigabytes(estimate.kv_bytes)} KV cache "
        f"for {estimate.num_tokens} tokens) and {_gigabytes(available_bytes)} are free. Lower "
        "--max-model-len, use --dtype bfloat16 or int8, or choose a smaller model."
    )


def refuse_foreign_formats(name: str, config: Mapping[str, Any], files: Iterable[str]) -> None:
    """Refuse checkpoints that the engine can't read, naming the format.

    Raises:
        ModelError: Pickled weights, or quantised by a method that is not read.
    """
    files = list(files)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method and str(method) not in QUANT_METHODS:
        raise ModelError(
            f"{name} is quantised by {str(method)!r:.80}, which is not read; "
            f"{', '.join(QUANT_METHODS)} are. Use the original checkpoint of the model, or one "
            "quantised by these."
        )
    if any(file.endswith(".safetensors") for file in files):
        return
    if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
        raise ModelError(
            f"{name} holds only pickled weights (.bin, .pt), which are never loaded because "
            "unpickling runs code; `penstock convert` makes a folder with safetensors of them."
        )
    raise ModelError(f"{name} holds no *.safetensors and no *.gguf file.")


def is_complete(folder: Path) -> bool:
    """Whether a snapshot of the hub holds all it takes; an interrupted download leaves a part."""
    if not (folder / "config.json").is_file():
        return False
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return False
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        weights = [path.name for path in folder.glob("*.safetensors")]
        return bool(weights) and not any("-of-" in name for name in weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return all((folder / str(name)).is_file() for name in named)


def _local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read: {error}.") from error
    if config is None:
        files = [item.name for item in folder.iterdir()]
        refuse_foreign_formats(str(folder), {}, files)
        raise ModelError(f"{folder} has no config.json; is it a Hugging Face checkpoint folder?")
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return config


def check_local(model: ModelChoice, folder: Path, settings: ServeSettings) -> None:
    """Refuse a local folder that can't be served.

    Raises:
        ModelError: Missing files, foreign format, too large.
    """
    config = _local_config(folder)
    files = [item for item in folder.iterdir() if item.is_file()]
    refuse_foreign_formats(model.name, config, [item.name for item in files])
    size = sum(item.stat().st_size for item in files if item.suffix == ".safetensors")
    _require_room(model, config, size, settings)


def check_gguf(model: ModelChoice, path: Path, settings: ServeSettings) -> None:
    """Refuse a GGUF file that is broken or doesn't fit.

    Raises:
        ModelError: With what is wrong, and ways out.
    """
    config, weights_bytes = config_of(path)
    _require_room(model, config, weights_bytes, settings)


def _require_room(
    model: ModelChoice, config: Mapping[str, Any], checkpoint_bytes: int, settings: ServeSettings
) -> None:
    try:
        estimate = estimate_memory(
            config,
            checkpoint_bytes,
            # What the engine makes of `auto` then.
            dtype="float32" if settings.deterministic else settings.dtype,
            max_model_len=settings.max_model_len,
            keeps_stored=settings.dtype == "auto"
            and settings.backend != "xla"
            and not settings.deterministic,
        )
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelError(f"The config.json of {model.name} is not valid: {error}.") from error
    free_bytes = free_memory_bytes(psutil.virtual_memory().available)
    require_memory(model.name, estimate, free_bytes)


def resolve_model(model: ModelChoice, settings: ServeSettings) -> Path | None:
    """The folder or GGUF file of a model, fetched from the hub when it is not local.

    Returns:
        None for the demo; of a GGUF model in several files the first.

    Raises:
        ModelError: It can't be found, fetched, read, or held in memory.
    """
    if model.source is None:
        return None
    looks_local = model.source.startswith((".", "/", "~"))
    folder = Path(model.source).expanduser()
    file = local_file(model.source, folder)
    if file is not None:
        check_gguf(model, file, settings)
        # Links stay: beside what they lead to there may be no other files of the model.
        return file.absolute()
    if folder.is_dir():
        check_local(model, folder, settings)
        return folder.resolve()
    if looks_local or folder.exists():
        raise ModelError(f"{model.source} is neither a folder nor a GGUF file.")
    fetched = _fetch(model, hub_name(model.source), settings)
    if fetched.is_dir():
        check_local(model, fetched, settings)
    else:
        check_gguf(model, fetched, settings)
    return fetched


def _fetch(model: ModelChoice, name: HubName, settings: ServeSettings) -> Path:
    """Download a model once, under the hub library's lock; a complete cache needs no network."""
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    cached = _cached(name, settings.revision, is_offline=is_offline)
    if cached is not None:
        return cached
    source = name.repo
    if is_offline:
        raise ModelError(f"{source} is not in the local cache and HF_HUB_OFFLINE is set.")
    with _hub_errors(source, settings.revision):
        return _download(model, name, settings)


def _cached(name: HubName, revision: str | None, *, is_offline: bool) -> Path | None:
    """What is meant, if an earlier download left all of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name.repo, revision=revision, allow_patterns=_PATTERNS, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ModelError(
            f"{name.repo!r} is neither a folder nor a Hugging Face id (organisation/model)."
        ) from None
    if name.wanted is None and is_complete(folder):
        return folder
    if name.wanted is None and not is_offline:
        # Only the hub knows whether an earlier download is all that there is.
        return None
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    try:
        return folder / choose_files(name.repo, found, name.wanted)[0]
    except ModelError:
        return None


def _download(model: ModelChoice, name: HubName, settings: ServeSettings) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    source = name.repo
    info = HfApi().model_info(source, revision=settings.revision, files_metadata=True)
    siblings = info.siblings or []
    sizes = {item.rfilename: item.size or 0 for item in siblings}
    has_safetensors = any(file.endswith(".safetensors") for file in sizes)
    has_gguf = any(file.endswith(".gguf") for file in sizes)
    if name.wanted is not None or (has_gguf and not has_safetensors):
        chosen = choose_files(source, sizes, name.wanted)
        told = HfApi().model_info(source, revision=settings.revision, expand=["gguf"]).gguf
        config, size = config_of_hub(told, sum(sizes[file] for file in chosen))
        _require_room(model, config, size, settings)
        patterns = [glob.escape(file) for file in chosen]
        return _snapshot(source, settings.revision, patterns) / chosen[0]
    if "config.json" not in sizes:
        refuse_foreign_formats(source, {}, sizes)
        raise ModelError(f"{source} has no config.json; is it a model that generates text?")
    config_path = Path(hf_hub_download(source, "config.json", revision=info.sha))
    config = _local_config(config_path.parent)
    refuse_foreign_formats(model.name, config, sizes)
    size = sum(size for file, size in sizes.items() if file.endswith(".safetensors"))
    _require_room(model, config, size, settings)
    return _snapshot(source, settings.revision, _PATTERNS)


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Path:
    """Download what fits, all of one commit.

    By the revision's own name: a cache that knows only the commit does not find it later.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))


@contextmanager
def _hub_errors(source: str, revision: str | None) -> Iterator[None]:
    """Errors of the hub's library as one clear line each."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{source} is gated: accept its terms on the hub and set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{source} has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{source} is no local folder and no hub model; private ones need HF_TOKEN."
        ) from None
    except (httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"{source} is not a local folder and the hub can't be reached: {type(error).__name__}. "
            "Give the path of a local checkpoint folder."
        ) from error
