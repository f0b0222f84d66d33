"""One small model of a family, as transformers configures it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NUM_PROMPT_TOKENS = 48
NUM_GREEDY_TOKENS = 64

SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
"""What a case has where it doesn't say something else."""


@dataclass(frozen=True)
class FamilyCase:
    """One small model.

    Attributes:
        config: The class of its config in transformers.
        differences: From `SIZES`; a value of None drops the field.
        outer: Where the text model's config is part of a larger one, the rest of that one.
        model: The class of the model in transformers.
        norm_mean: Around which the weights of norms lie; 0 where the family multiplies by 1 + w.
        embedding_scale: Deviation of the embedding's weights; small where a tied head or a
            multiplier would make every token follow itself.
        wrapped_as: The architecture of a larger model whose text model this is: the files are
            rewritten as its own, where transformers needs other packages or much time to build it.
        text_model: Prefix of the text model's tensors in the larger one.
        turns_experts: The files on the hub have stacked experts [E, in, out], which transformers
            turns when it reads them, but not when it saves a model that it made.
        why_logits_only: Why transformers generates otherwise than it computes a whole prompt; the
            case is held to the logits of the prompt only then.
        in_make_test: Whether `make test` runs it; `make parity` runs all.
    """

    config: str
    differences: Mapping[str, Any] = field(default_factory=dict)
    outer: Mapping[str, Any] | None = None
    model: str = "AutoModelForCausalLM"
    norm_mean: float = 1.0
    embedding_scale: float = 0.2
    wrapped_as: str = ""
    text_model: str = "model.language_model."
    turns_experts: bool = False
    why_logits_only: str = ""
    in_make_test: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """What the config is made of."""
        sizes = {**SIZES, **self.differences}
        text = {name: value for name, value in sizes.items() if value is not None}
        return text if self.outer is None else {"text_config": text, **self.outer}
