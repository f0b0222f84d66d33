"""How the vectors of a text's tokens become one vector, and where a model folder says so."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import jax
import jax.numpy as jnp

from engine_worker.compute.models.config_fields import MAX_SIZE, ConfigFields
from engine_worker.embedding.dense import DenseSpec, apply_dense, dense_spec
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError
from engine_worker.text.bounded_file import read_bounded

PoolingKind = Literal["mean", "cls", "last", "max", "weightedmean", "mean_sqrt_len"]
POOLING_KINDS: Final[tuple[PoolingKind, ...]] = get_args(PoolingKind)
_MODES: Final[dict[str, PoolingKind]] = {
    # By a switch each until release 5.4, by name since.
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "last": "last",
    "max": "max",
    "weightedmean": "weightedmean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "mean_sqrt_len": "mean_sqrt_len",
}
_WITHOUT_PROMPT: Final = frozenset({"cls", "last"})
"""Kinds to which it makes no difference whether a prompt's tokens count."""
_MODULES: Final = "modules.json"
_TRANSFORMER: Final = "sentence_bert_config.json"
_TOKENIZER: Final = "tokenizer_config.json"
_PROMPTS: Final = "config_sentence_transformers.json"
_MAX_PROMPTS: Final = 256
_MAX_PROMPT_NAME: Final = 64
_MAX_PROMPT: Final = 4096
"""Names travel with what an engine announces; a text stands before every input."""


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """What follows the last layer.

    Attributes:
        kind: Of all tokens `mean`, `max`, `weightedmean` (later ones more) or their sum by the root
            of their number (`mean_sqrt_len`); `cls` the first one, `last` the last one.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: The longest text the model was trained with; None says nothing.
        dense: Layers between pooling and normalising.
        prompt: Stands before each text unless a request names another one.
        prompts: Name and text of each that a request may name.
        lowercase: Whether texts are put in lower case.
    """

    kind: PoolingKind
    normalize: bool = True
    max_tokens: int | None = None
    dense: tuple[DenseSpec, ...] = ()
    prompt: str = ""
    prompts: tuple[tuple[str, str], ...] = ()
    lowercase: bool = False


def load_pooling(folder: Path) -> PoolingSpec | None:
    """Read the layout of `sentence-transformers`, old and new; None when the folder has none.

    See https://sbert.net/docs/package_reference/sentence_transformer/modules.html. The longest text
    is `max_seq_length` of `sentence_bert_config.json`, or since release 5.4 the tokenizer's
    `model_max_length`.

    Raises:
        ModelConfigError: A file is broken.
        UnsupportedFeatureError: It holds a module or a pooling mode that is not computed.
    """
    path = folder / _MODULES
    if not path.is_file():
        return None
    prompt, prompts = _read_prompts(folder)
    kind: PoolingKind = "mean"
    normalize = False
    dense: list[DenseSpec] = []
    for module in _read(path, list):
        name = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        place = _module_folder(folder, module.get("path", "")) if name else folder
        if name == "Pooling":
            kind = _pooling_kind(place / "config.json", has_prompt=any(text for _, text in prompts))
        elif name == "Dense":
            if normalize:
                raise UnsupportedFeatureError(f"{path}: not supported yet: Dense after Normalize")
            dense.append(dense_spec(place, _read(place / "config.json", dict)))
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise UnsupportedFeatureError(f"{path}: not supported yet: module {name!r}")
    transformer = {}
    if (folder / _TRANSFORMER).is_file():
        transformer = _read(folder / _TRANSFORMER, dict)
    return PoolingSpec(
        kind,
        normalize,
        _max_tokens(folder, transformer),
        tuple(dense),
        prompt,
        prompts,
        lowercase=transformer.get("do_lower_case") is True,
    )


def _module_folder(folder: Path, path: object) -> Path:
    """Where a module's files lie: within the model's folder."""
    place = folder / str(path)
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ModelConfigError(f"{folder / _MODULES}: {path!r} is not within the model's folder")
    return place


def _max_tokens(folder: Path, transformer: dict[str, Any]) -> int | None:
    fields = ConfigFields(transformer, _TRANSFORMER)
    if fields.present("max_seq_length"):
        return fields.size("max_seq_length", minimum=2)
    if not (folder / _TOKENIZER).is_file():
        return None
    value = _read(folder / _TOKENIZER, dict).get("model_max_length")
    # transformers writes 10**30 where there is no bound.
    is_length = isinstance(value, int) and not isinstance(value, bool)
    return value if is_length and 2 <= value <= MAX_SIZE else None


def _read_prompts(folder: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text before each input unless a client says otherwise, and all that have names."""
    path = folder / _PROMPTS
    if not path.is_file():
        return "", ()
    config = _read(path, dict)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        raise ModelConfigError(f"{path}: prompts must be an object of texts")
    if len(prompts) > _MAX_PROMPTS or any(
        len(name) > _MAX_PROMPT_NAME or len(text) > _MAX_PROMPT for name, text in prompts.items()
    ):
        raise ModelConfigError(
            f"{path}: at most {_MAX_PROMPTS} prompts work, with names of {_MAX_PROMPT_NAME} and"
            f" texts of {_MAX_PROMPT} characters"
        )
    name = config.get("default_prompt_name")
    if name is None:
        return "", tuple(prompts.items())
    if not isinstance(name, str) or name not in prompts:
        raise ModelConfigError(f"{path}: default_prompt_name is {name!r}, which is no prompt there")
    return prompts[name], tuple(prompts.items())


def _pooling_kind(path: Path, *, has_prompt: bool) -> PoolingKind:
    config = _read(path, dict)
    named = config.get("pooling_mode")
    if named is None:
        modes = [key for key, value in config.items() if key.startswith("pooling_mode") and value]
    else:
        modes = [str(one) for one in named] if isinstance(named, list) else [str(named)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UnsupportedFeatureError(
            f"{path}: not supported yet: pooling {', '.join(modes) or 'without a mode'}"
        )
    kind = _MODES[modes[0]]
    if config.get("include_prompt") is False and has_prompt and kind not in _WITHOUT_PROMPT:
        raise UnsupportedFeatureError(
            f"{path}: not supported yet: include_prompt false with prompts, and pooling by {kind}"
        )
    return kind


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        value = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ModelConfigError(f"{path}: must hold a JSON {'array' if kind is list else 'object'}")
    return value


def _pool_all(hidden: jax.Array, lengths: jax.Array, kind: PoolingKind) -> jax.Array:
    """The kinds to which all tokens count; arguments as in `pool`."""
    places = jnp.arange(hidden.shape[1])
    visible = (places < lengths[:, None])[..., None]
    if kind == "max":
        most = jnp.max(jnp.where(visible, hidden, -jnp.inf), axis=1)
        return jnp.where(lengths[:, None] > 0, most, 0.0)
    counts = jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)
    if kind == "weightedmean":
        weighted = hidden * (1.0 + places.astype(jnp.float32))[None, :, None]
        total = jnp.sum(jnp.where(visible, weighted, 0.0), axis=1)
        return total / (counts * (counts + 1.0) / 2.0)
    total = jnp.sum(jnp.where(visible, hidden, 0.0), axis=1)
    return total / (jnp.sqrt(counts) if kind == "mean_sqrt_len" else counts)


def pool(
    hidden: jax.Array,
    lengths: jax.Array,
    spec: PoolingSpec,
    dense: Sequence[tuple[jax.Array, jax.Array]] = (),
) -> jax.Array:
    """One vector a row; called while the caller's program is traced.

    Args:
        hidden: [B, T, D] float32.
        lengths: [B] int32, tokens of each row; 0 for padding rows.
        spec: How.
        dense: Weight and bias of each of its layers.

    Returns:
        [B, D] float32, or as wide as the last layer; zeros for padding rows when it normalises and
        has no layers.
    """
    if spec.kind == "cls":
        vectors = hidden[:, 0]
    elif spec.kind == "last":
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        vectors = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    else:
        vectors = _pool_all(hidden, lengths, spec.kind)
    for layer, (weight, bias) in zip(spec.dense, dense, strict=True):
        vectors = apply_dense(vectors, weight, bias, layer)
    if spec.normalize:
        norm = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / jnp.maximum(norm, 1e-12)
    return vectors
