"""What an encoder computes, read from the `config.json` of the BERT family.

BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), XLM-RoBERTa included: learned absolute
positions, post-norm layers, LayerNorm, plain MLP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine_worker.compute.models.config_fields import ConfigFields, read_config
from engine_worker.errors import UnsupportedArchitectureError, UnsupportedFeatureError

_BERT: Final = frozenset({"bert"})
_ROBERTA: Final = frozenset({"roberta", "xlm-roberta", "camembert"})
ENCODER_MODEL_TYPES: Final = _BERT | _ROBERTA
ACTIVATIONS: Final = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder.

    Attributes:
        architecture: As in the config, for people.
        num_positions: Rows of the position table.
        first_position: Row of the first token: 0, or after the padding row in RoBERTa.
        num_types: Rows of the token-type table; every token here is of type 0.
        activation: One of `ACTIVATIONS`.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    num_positions: int
    first_position: int
    num_types: int
    activation: str
    norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def max_tokens(self) -> int:
        """The longest input, special tokens included."""
        return self.num_positions - self.first_position


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this family."""
    return config.get("model_type") in ENCODER_MODEL_TYPES


def load_encoder_spec(folder: Path) -> EncoderSpec:
    """Read the config of a model folder.

    Raises:
        ModelConfigError: It is missing or contradicts itself.
        UnsupportedArchitectureError: It is of another family.
        UnsupportedFeatureError: It asks for something that is not computed; it is named.
    """
    config = read_config(folder)
    model_type = config.get("model_type")
    if not is_encoder(config):
        raise UnsupportedArchitectureError(
            f"{folder}: model type {model_type!r} is not a supported encoder; supported: "
            f"{', '.join(sorted(ENCODER_MODEL_TYPES))}"
        )
    _refuse_unsupported(folder, config)
    fields = ConfigFields(config)
    architectures = config.get("architectures") or [str(model_type)]
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden_size % num_heads:
        raise fields.error("hidden_size", f"must be a multiple of {num_heads} heads", hidden_size)
    padding_id = fields.size("pad_token_id", 1, minimum=0) if model_type in _ROBERTA else -1
    return EncoderSpec(
        architecture=str(architectures[0]),
        hidden_size=hidden_size,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=num_heads,
        intermediate_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        num_positions=fields.size("max_position_embeddings"),
        first_position=padding_id + 1,
        num_types=fields.size("type_vocab_size", 2),
        activation=str(config.get("hidden_act", "gelu")),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
    )


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UnsupportedFeatureError(f"{folder}: not supported yet: activation {activation!r}")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UnsupportedFeatureError(f"{folder}: not supported yet: {positions!r} positions")
    if config.get("is_decoder"):
        raise UnsupportedFeatureError(f"{folder}: an encoder with is_decoder is not supported")
