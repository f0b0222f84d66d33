"""GGUF files among what the user may name: which file is meant, and what it will take."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from penstock.errors import ModelError
from penstock.recurrent_states import STATE_VALUES, recurrent_values
from protocol.runtime.gguf_header import (
    SUFFIX,
    GgufError,
    models_among,
    read_gguf_shards,
    shard_names,
)

HUB_PREFIX: Final = "hf:"
STORED: Final = "bfloat16"
"""What a quantised file counts as: dequantised, unless it stays or a narrower type is asked for."""
STORED_BYTES: Final = "stored_bytes"
"""In what stands for a `config.json`: bytes of the numbers as the files keep them."""
_BYTES: Final = 2
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model")
_NAMES_SHOWN: Final = 40
_BLOCK: Final = re.compile(r"blk\.(?P<index>[0-9]{1,6})\.(?P<part>.+)\.weight")
_KEYS, _MIXER, _CONVOLUTION = "attn_k", "ssm_out", "shortconv.conv"
"""Tensors that each layer with attention, with a delta net or Mamba-2, or with a convolution has.
"""


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the hub, and which of its files.

    Attributes:
        repo: `organisation/model`.
        wanted: `Q4_K_M`, or the name of a file; None where nobody said.
    """

    repo: str
    wanted: str | None


def hub_name(source: str) -> HubName:
    """`hf:org/repo:Q4_K_M`, `org/repo:Q4_K_M`, `hf:org/repo` or `org/repo`."""
    repo, colon, wanted = source.removeprefix(HUB_PREFIX).partition(":")
    return HubName(repo, wanted if colon else None)


def local_file(source: str, path: Path) -> Path | None:
    """The GGUF file that a local path names; None where it names something else.

    Raises:
        ModelError: A folder with several models, or no such file.
    """
    if path.is_dir():
        has_weights = any(path.glob("*.safetensors"))
        has_tokenizer = any((path / name).is_file() for name in _TOKENIZERS)
        if has_weights or ((path / "config.json").is_file() and has_tokenizer):
            return None
        found = models_among([item.name for item in path.iterdir() if item.is_file()])
        if len(found) > 1:
            raise ModelError(
                f"{source} holds {len(found)} GGUF models ({_listed(found)}); name one of the"
                " files."
            )
        return path / found[0] if found else None
    if path.suffix != SUFFIX or source.startswith(HUB_PREFIX):
        return None
    if not path.is_file():
        raise ModelError(f"There is no file {source}.")
    return path.absolute()


def choose_files(place: str, files: Iterable[str], wanted: str | None) -> tuple[str, ...]:
    """All files of the model that is meant, of those in a place.

    Args:
        place: For messages.
        files: Names, maybe with folders.
        wanted: A file, or how its numbers are kept (`Q4_K_M`), in either case.

    Raises:
        ModelError: None fits, or several do; lists what there is.
    """
    files = list(files)
    models = models_among(files)
    found = [name for name in models if wanted is None or _fits(name, wanted)]
    if not models:
        raise ModelError(f"{place} holds no GGUF file.")
    if len(found) != 1:
        what = "several GGUF models" if wanted is None else f"no single GGUF file for {wanted!r}"
        raise ModelError(
            f"{place} holds {what}; name one as {HUB_PREFIX}ORG/REPO:FILE, or by its ending"
            f" (:Q4_K_M): {_listed(found or models)}."
        )
    parts = shard_names(found[0])
    missing = [name for name in parts if name not in files]
    if missing:
        raise ModelError(f"{place} lacks {missing[0]}, one of {len(parts)} files of the model.")
    return parts


def _fits(name: str, wanted: str) -> bool:
    if name == wanted:
        return True
    path = PurePosixPath(shard_names(name)[0])
    stem = re.sub(r"-[0-9]{5}-of-[0-9]{5}$", "", path.stem).lower()
    label = wanted.lower()
    # The rest of a label is none: `K_M` of `Q4_K_M`.
    boundaries = "-._" if any(letter.isdigit() for letter in label) else "-."
    return bool(label) and (
        path.parent.name.lower() == label
        or stem == label
        or (stem.endswith(label) and stem[-len(label) - 1] in boundaries)
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def config_of(path: Path) -> tuple[dict[str, Any], int]:
    """What an estimate of memory needs to know of a file.

    Returns:
        The few values of a `config.json` that decide, and the bytes of its numbers in `STORED`.

    Raises:
        ModelError: The file is broken; names it and the way out.
    """
    try:
        files = read_gguf_shards(path)
    except GgufError as error:
        raise ModelError(f"{error}.") from error
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    values = sum(tensor.num_values for tensor in tensors.values())
    stored = sum(one.end - one.start for one in tensors.values())
    metadata = files[0].metadata
    config = {**_config(metadata), **_recurrent(metadata, tensors), STORED_BYTES: stored}
    return config, values * _BYTES


def _largest(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(f"{metadata.get('general.architecture')}.{key}", 0)
    if isinstance(value, int):
        return value
    # Some families have a number for each layer.
    numbers = value if isinstance(value, Iterable) else ()
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    largest = partial(_largest, metadata)
    heads = largest("attention.head_count")
    return {
        "dtype": STORED,
        "hidden_size": largest("embedding_length"),
        "num_hidden_layers": largest("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": largest("attention.head_count_kv") or heads,
        "head_dim": largest("attention.key_length"),
        "max_position_embeddings": largest("context_length"),
    }


def _recurrent(metadata: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """How many layers attend, and what the others keep, where some are recurrent."""
    largest = partial(_largest, metadata)
    # Behind these are layers that only predict more tokens, which aren't loaded.
    num_layers = largest("block_count") - largest("nextn_predict_layers")
    num_attending = num_mixers = num_convolutions = 0
    for name in tensors:
        match = _BLOCK.fullmatch(name)
        if match is not None and int(match["index"]) < num_layers:
            num_attending += match["part"] == _KEYS
            num_mixers += match["part"] == _MIXER
            num_convolutions += match["part"] == _CONVOLUTION
    if not num_mixers + num_convolutions:
        return {}
    of_mixer = recurrent_values(
        largest("ssm.conv_kernel"),
        largest("ssm.inner_size"),
        largest("ssm.group_count") * largest("ssm.state_size"),
        largest("ssm.state_size"),
    )
    of_convolution = (largest("shortconv.l_cache") - 1) * largest("embedding_length")
    return {
        "num_hidden_layers": num_attending,
        STATE_VALUES: num_mixers * of_mixer + num_convolutions * of_convolution,
    }


def config_of_hub(told: Mapping[str, Any] | None, files_bytes: int) -> tuple[dict[str, Any], int]:
    """The same before the download, from what the hub knows of a model's GGUF files.

    Args:
        told: `gguf` of the hub's answer: `total` numbers; None where it doesn't say.
        files_bytes: Of the files that are to be downloaded; the weights are at least that.
    """
    total = (told or {}).get("total")
    numbers = total if isinstance(total, int) and total > 0 else 0
    return {"dtype": STORED, STORED_BYTES: files_bytes}, max(numbers * _BYTES, files_bytes)
