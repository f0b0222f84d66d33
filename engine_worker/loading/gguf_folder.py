"""Makes a model folder of a GGUF file: what its metadata say, as the files that are read elsewhere.

The folder holds `config.json`, the tokenizer's files, the chat templates, `generation_config.json`,
and links to the GGUF files. It is kept in the cache of weights under a name made of the file's
path and header, so that it is made once, and again when the file changes.
"""

import atexit
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from safetensors.numpy import save_file

from engine_worker.compute.models.config_fields import CONFIG_NAME
from engine_worker.compute.weights.gguf.checkpoint import (
    derive_config,
    find_model,
    layer_shapes,
    read_layers_behind,
    read_metadata,
)
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.compute.weights.safetensors_files import INDEX_NAME, SINGLE_NAME
from engine_worker.config import ModelSettings
from engine_worker.errors import CheckpointError, TokenizerLoadError
from engine_worker.text.gguf_vocabulary import GgufTokenizer, read_gguf_tokenizer
from engine_worker.text.tokenizer_files import TOKENIZER_JSON, TOKENIZER_MODEL
from protocol.runtime.gguf_header import SUFFIX, model_name

FOLDER: Final = "gguf"
_VERSION: Final = 1
_MADE_NAME: Final = re.compile(r"-[0-9a-f]{16}$")
"""Of what is derived: another number makes all folders again."""
_TOKENIZERS: Final = (TOKENIZER_JSON, TOKENIZER_MODEL, "vocab.json", "tekken.json")
_POOLING: Final = {1: "mean", 2: "cls", 3: "lasttoken"}
"""By the number of `gguf.constants.PoolingType`."""
_MODULES: Final = "sentence_transformers.models."
_LAYER_FOLDER: Final = "{}_Dense"
_SAMPLING: Final = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_log = logging.getLogger("penstock.engine.weights")


def with_model_folder(settings: ModelSettings) -> ModelSettings:
    """The settings with a model folder as their path, also where a GGUF file is served.

    A folder with a config and a tokenizer of its own, or with safetensors files, stays as it is.

    Args:
        settings: Whose path is a folder, or a GGUF file (of several any).

    Raises:
        ModelLoadError: The file can't be served; one line that says why.
    """
    path = _gguf_of(settings.path)
    if path is None:
        return settings
    metadata = read_metadata(path)
    # Whoever names a tokenizer needn't have one in the file that can be read.
    tokenizer = None
    try:
        tokenizer = read_gguf_tokenizer(metadata.values, metadata.path)
    except TokenizerLoadError as error:
        if settings.tokenizer_path is None:
            raise
        _log.warning("%s; %s is used", error, settings.tokenizer_path)
    files = derived_files(metadata, tokenizer)
    folder = _kept(settings.weights_cache_dir, _key(metadata, files), metadata, files)
    _log.info("%s: what it says of itself is in %s", path, folder)
    return replace(settings, path=folder)


def _gguf_of(path: Path) -> Path | None:
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    has_tokenizer = any((path / name).is_file() for name in _TOKENIZERS)
    if (path / CONFIG_NAME).is_file() and has_tokenizer:
        return None
    if (path / SINGLE_NAME).is_file() or (path / INDEX_NAME).is_file():
        return None
    return find_model(path)


def derived_files(metadata: GgufMetadata, tokenizer: GgufTokenizer | None) -> dict[str, str]:
    """The text of each file of the folder, by name; without a tokenizer none of its files."""
    config = derive_config(metadata)
    generation = dict(_sampling_defaults(metadata))
    texts: dict[str, str] = {}
    if tokenizer is not None:
        if tokenizer.eos_token_ids:
            config["eos_token_id"] = list(tokenizer.eos_token_ids)
            generation["eos_token_id"] = list(tokenizer.eos_token_ids)
        texts[TOKENIZER_JSON] = tokenizer.tokenizer_json
        texts["tokenizer_config.json"] = _json(tokenizer.config)
        for name, source in tokenizer.templates.items():
            is_usual = name == "default"
            file = "chat_template.jinja" if is_usual else f"additional_chat_templates/{name}.jinja"
            texts[file] = source
    texts[CONFIG_NAME] = _json(config)
    texts["generation_config.json"] = _json(generation)
    return texts | _pooling_files(metadata)


def _pooling_files(metadata: GgufMetadata) -> dict[str, str]:
    """What follows the last layer, in the layout of `sentence-transformers`.

    llama.cpp scales all vectors to length 1, and so does what is made here.
    """
    kind = _POOLING.get(metadata.whole("pooling_type", 0))
    if kind is None:
        return {}
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    texts = {"1_Pooling/config.json": _json({"pooling_mode": kind})}
    for number, shape in enumerate(layer_shapes(metadata), 2):
        folder = _LAYER_FOLDER.format(number)
        modules.append(("Dense", folder))
        layer = {"in_features": shape[1], "out_features": shape[0], "bias": False}
        activation = {"activation_function": "torch.nn.modules.linear.Identity"}
        texts[f"{folder}/config.json"] = _json({**layer, **activation})
    modules.append(("Normalize", "4_Normalize"))
    listed = [{"type": f"{_MODULES}{name}", "path": path} for name, path in modules]
    texts["modules.json"] = json.dumps(listed, indent=1) + "\n"
    return texts


def _sampling_defaults(metadata: GgufMetadata) -> Mapping[str, Any]:
    found = {}
    for key, name in _SAMPLING.items():
        value = metadata.values.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value if isinstance(value, int) else float(f"{value:.7g}")
    return found


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _key(metadata: GgufMetadata, files: Mapping[str, str]) -> str:
    """A name for what the folder holds: where the model lies, its headers, and what is derived."""
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for file in metadata.files:
        digest.update(os.fsencode(file.path.absolute()) + b"\0")
        stat = file.path.stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    for name, text in sorted(files.items()):
        digest.update(f"{name}:{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _kept(
    cache_dir: Path | None, key: str, metadata: GgufMetadata, files: Mapping[str, str]
) -> Path:
    """The folder in the cache, made if it isn't there; in a temporary one where that can't be."""
    name = f"{model_name(metadata.path)}-{key[:16]}"
    if cache_dir is not None:
        place = cache_dir / FOLDER
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_new = not (place / name).is_dir()
            folder = _made(place / name, metadata, files)
            if is_new:
                _remove_replaced(folder, metadata, cache_dir)
            return folder
        except OSError as error:
            _log.warning("what %s says can't be kept in %s: %s", metadata.path, place, error)
    try:
        temporary = Path(tempfile.mkdtemp(prefix="penstock-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return _made(temporary / name, metadata, files)
    except OSError as error:
        raise CheckpointError(
            f"{metadata.path}: there is no place for the files made of it: {error}; set"
            " PENSTOCK_WEIGHTS_CACHE_DIR to a folder that can be written"
        ) from error


def _remove_replaced(folder: Path, metadata: GgufMetadata, cache_dir: Path) -> None:
    """Folders of files that stood in the model's place before, and the weights packed from them."""
    target, modified = metadata.path.absolute(), metadata.path.stat().st_mtime_ns
    for other in folder.parent.iterdir():
        link, config = other / metadata.path.name, other / CONFIG_NAME
        if other == folder or not _MADE_NAME.search(other.name) or not link.is_symlink():
            continue
        with suppress(OSError):
            # One of the same date is of another version of Penstock, and may be in use.
            if link.readlink() != target or config.stat().st_mtime_ns == modified:
                continue
            shutil.rmtree(other)
            for file in cache_dir.glob(f"{glob.escape(other.name)}-*"):
                file.unlink()


def _made(folder: Path, metadata: GgufMetadata, files: Mapping[str, str]) -> Path:
    if folder.is_dir():
        return folder
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for name, text in files.items():
            path = unfinished / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for number, weight in enumerate(read_layers_behind(metadata), 2):
            place = unfinished / _LAYER_FOLDER.format(number)
            place.mkdir(exist_ok=True)
            save_file({"linear.weight": weight}, place / SINGLE_NAME)
        for file in metadata.files:
            (unfinished / file.path.name).symlink_to(file.path.absolute())
        # What is told as the date of the model is that of its config.
        modified = metadata.path.stat().st_mtime_ns
        os.utime(unfinished / CONFIG_NAME, ns=(modified, modified))
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was faster; the same was to be written.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
