"""How the vectors of a text's tokens become one vector, and where a model folder says so."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import jax
import jax.numpy as jnp

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.errors import ModelConfigError, UnsupportedFeatureError

PoolingKind = Literal["mean", "cls", "last"]
POOLING_KINDS: Final[tuple[PoolingKind, ...]] = get_args(PoolingKind)
_MODE_FLAGS: Final[dict[str, PoolingKind]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES: Final = "modules.json"
_LENGTH: Final = "sentence_bert_config.json"


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """What follows the last layer.

    Attributes:
        kind: `mean` of all tokens, `cls` the first one, `last` the last one.
        normalize: Whether vectors are scaled to length 1.
        max_tokens: The longest text the model was trained with; None says nothing.
    """

    kind: PoolingKind
    normalize: bool = True
    max_tokens: int | None = None


def load_pooling(folder: Path) -> PoolingSpec | None:
    """Read the layout of `sentence-transformers`; None when the folder has none.

    See https://sbert.net/docs/package_reference/sentence_transformer/models.html.

    Raises:
        ModelConfigError: A file is broken.
        UnsupportedFeatureError: It holds a module or a pooling mode that is not computed.
    """
    path = folder / _MODULES
    if not path.is_file():
        return None
    kind: PoolingKind = "mean"
    normalize = False
    for module in _read(path, list):
        name = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if name == "Pooling":
            kind = _pooling_kind(folder / str(module.get("path", "")) / "config.json")
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise UnsupportedFeatureError(f"{path}: not supported yet: module {name!r}")
    max_tokens = None
    if (folder / _LENGTH).is_file():
        fields = ConfigFields(_read(folder / _LENGTH, dict), _LENGTH)
        if fields.present("max_seq_length"):
            max_tokens = fields.size("max_seq_length", minimum=2)
    return PoolingSpec(kind, normalize, max_tokens)


def _pooling_kind(path: Path) -> PoolingKind:
    config = _read(path, dict)
    modes = [name for name, value in config.items() if name.startswith("pooling_mode") and value]
    if config.get("pooling_mode") in POOLING_KINDS:
        modes = [name for name, kind in _MODE_FLAGS.items() if kind == config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in _MODE_FLAGS:
        raise UnsupportedFeatureError(
            f"{path}: not supported yet: pooling {', '.join(modes) or 'without a mode'}"
        )
    return _MODE_FLAGS[modes[0]]


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ModelConfigError(f"{path}: must hold a JSON {'array' if kind is list else 'object'}")
    return value


def pool(hidden: jax.Array, lengths: jax.Array, spec: PoolingSpec) -> jax.Array:
    """One vector a row; called while the caller's program is traced.

    Args:
        hidden: [B, T, D] float32.
        lengths: [B] int32, tokens of each row; 0 for padding rows.
        spec: How.

    Returns:
        [B, D] float32; zeros for padding rows when it normalises.
    """
    if spec.kind == "cls":
        vectors = hidden[:, 0]
    elif spec.kind == "last":
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        vectors = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    else:
        visible = jnp.arange(hidden.shape[1]) < lengths[:, None]
        total = jnp.sum(jnp.where(visible[..., None], hidden, 0.0), axis=1)
        vectors = total / jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)
    if spec.normalize:
        norm = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / jnp.maximum(norm, 1e-12)
    return vectors
