"""Readers that several families of encoders share."""

from collections.abc import Mapping
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.embedding.encoder_spec import ACTIVATIONS, HeadSpec
from engine_worker.errors import UnsupportedFeatureError

MAX_TOKENS: Final = 2**15
"""Of a row, whatever a config says where no table of positions in the file holds it to that: the
programs of the longest rows have to fit the memory."""


def max_tokens_of(fields: ConfigFields, name: str, default: int | None = None) -> int:
    """The longest row of a model with rotary positions."""
    return min(fields.size(name, default), MAX_TOKENS)


def num_heads_of(fields: ConfigFields, hidden_size: int, name: str = "num_attention_heads") -> int:
    """How many heads share the hidden size.

    Raises:
        ModelConfigError: It is no multiple of them.
    """
    num_heads = fields.size(name)
    if hidden_size % num_heads:
        raise fields.error("hidden_size", f"must be a multiple of {num_heads} heads", hidden_size)
    return num_heads


def activation_of(fields: ConfigFields, name: str, default: str) -> str:
    """An activation that is computed.

    Raises:
        UnsupportedFeatureError: Naming another one.
    """
    activation = fields.text(name, default)
    if activation not in ACTIVATIONS:
        raise UnsupportedFeatureError(f"config.json: not supported yet: activation {activation!r}")
    return activation


def refuse_decoding(config: Mapping[str, Any]) -> None:
    """Refuse an encoder that attends as a decoder.

    Raises:
        UnsupportedFeatureError: It does.
    """
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedFeatureError(
            "config.json: not supported: an encoder with is_decoder or add_cross_attention"
        )


def refuse_unless(config: Mapping[str, Any], **expected: object) -> None:
    """Refuse values that mean another computation.

    Args:
        config: The whole `config.json`.
        expected: By field, the one value that is computed; an absent field is fine.

    Raises:
        UnsupportedFeatureError: Naming the first other one.
    """
    for name, value in expected.items():
        found = config.get(name, value)
        if found is not None and found != value:
            raise UnsupportedFeatureError(
                f"config.json: not supported yet: {name} {found!r}, only {value!r}"
            )


def tanh_head(_: Mapping[str, Any], num_labels: int) -> HeadSpec:
    """BERT's pooler, or RoBERTa's dense layer: on the first token, with tanh."""
    return HeadSpec(num_labels, "tanh")
