"""From what the user named to a local folder with a checkpoint that fits in memory."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from penstock.config import ModelChoice, ServeSettings, expanded
from penstock.errors import ModelError
from penstock.gguf_source import (
    HubName,
    choose_files,
    config_of,
    config_of_hub,
    hub_name,
    local_file,
)
from penstock.memory_estimate import (
    QUANT_METHODS,
    estimate_memory,
    quant_method_of,
    require_memory,
)
from penstock.recurrent_states import CacheChoice
from protocol.runtime.container_limits import free_memory_bytes

_WEIGHTS = ".safetensors"
_SINGLE, _INDEX = f"model{_WEIGHTS}", f"model{_WEIGHTS}.index.json"
_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt"]
"""What is downloaded beside weights."""
_MODULES = "modules.json"
"""Of a model whose layers behind the last one are in folders of their own."""
_MAX_JSON_BYTES = 32 * 2**20
"""Of configs and of indices of shards, which are the longer ones; as the engine has it."""
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
    *("tekken.json", "tiktoken.model"),
)


def refuse_foreign_formats(name: str, config: Mapping[str, Any], files: Iterable[str]) -> None:
    """Refuse checkpoints that the engine can't read, naming the format.

    Raises:
        ModelError: Pickled weights, or quantised by a method that is not read.
    """
    files = list(files)
    method = quant_method_of(config)
    if method and method not in QUANT_METHODS:
        raise ModelError(
            f"{name} is quantised by {method!r:.80}, which is not read; "
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
    try:
        named = _placed_in(folder / _INDEX)
    except FileNotFoundError:
        weights = [path.name for path in folder.glob(f"*{_WEIGHTS}")]
        return bool(weights) and not any("-of-" in name for name in weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return all((folder / name).is_file() for name in named)


def _placed_in(index: Path) -> set[str]:
    """The files that an index of shards names.

    Raises:
        OSError: It can't be read, or isn't there.
        ValueError, KeyError, TypeError, AttributeError, RecursionError: It is none.
    """
    return {str(name) for name in _read_json(index)["weight_map"].values()}


def _weights_of(files: Iterable[str], index: Path) -> list[str]:
    """Which files of a checkpoint the engine reads: those of its index, else the whole one.

    Beside these there may be the same weights once more, in other forms (`consolidated.safetensors`
    of Mistral's, `original/` of gpt-oss's).

    Args:
        files: Names of all files, folders in front.
        index: Where the index is, if there is one.
    """
    files = list(files)
    found = [file for file in files if file.endswith(_WEIGHTS) and "/" not in file]
    placed = set()
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        placed = _placed_in(index)
    chosen = [file for file in found if file in placed]
    if not chosen:
        chosen = [_SINGLE] if _SINGLE in found else found
    if _MODULES in files:
        chosen += [file for file in files if file.endswith(f"/{_SINGLE}")]
    return chosen


def _read_json(path: Path) -> Any:
    """What a file holds, unless it is far larger than any of its kind.

    Raises:
        ValueError: It is, or is no JSON.
        OSError: It can't be read.
    """
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"it has {size} bytes, and at most {_MAX_JSON_BYTES} are read")
    return json.loads(path.read_text(encoding="utf-8"))


def _local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = _read_json(path)
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
    weights = _weights_of([item.name for item in files], folder / _INDEX)
    size = sum((folder / name).stat().st_size for name in weights)
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
            kv_dtype=settings.kv_dtype,
            cache=CacheChoice(settings.block_size, settings.max_num_seqs or 1),
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
    folder = expanded(model.source, "MODEL")
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
    index = config_path.parent / _INDEX
    if _INDEX in sizes:
        index = Path(hf_hub_download(source, _INDEX, revision=info.sha))
    weights = _weights_of(sizes, index)
    _require_room(model, config, sum(sizes[file] for file in weights), settings)
    return _snapshot(source, settings.revision, [*_PATTERNS, *map(glob.escape, weights)])


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
