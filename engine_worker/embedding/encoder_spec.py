"""What an encoder computes, as frozen values: every axis on which encoder families differ."""

from dataclasses import dataclass
from typing import Final, Literal

from engine_worker.compute.models.spec import MoeSpec, RopeSpec

ACTIVATIONS: Final = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh")
HeadPooling = Literal["cls", "mean"]


@dataclass(frozen=True, slots=True)
class EncoderLayerSpec:
    """One layer.

    Attributes:
        rope: Rotates queries and keys; None where positions are added to the embedding.
        window: Tokens i and j see each other when |i - j| <= window; None sees the whole row.
        has_attention_norm: Whether a norm stands before attention; only for pre-norm.
        experts: Stand in place of the MLP, without gates; None is the MLP.
    """

    rope: RopeSpec | None = None
    window: int | None = None
    has_attention_norm: bool = True
    experts: MoeSpec | None = None


@dataclass(frozen=True, slots=True)
class DisentangledSpec:
    """Scores that also depend on what a token is and how far the other one stands (DeBERTa).

    A table of vectors by distance is projected to keys, which queries are multiplied with, and to
    queries, which keys are.

    Attributes:
        span: Distances to either side that have a row of the table; farther ones share the last.
        longest: Distances beyond half the span grow logarithmically up to this one; None is one row
            for each distance.
        has_keys, has_queries: Which of the two is computed; at least one is.
        is_shared: Each layer projects the table as it does its tokens, not by matrices of its own.
        has_norm: The table is normalised.
    """

    span: int
    longest: int | None
    has_keys: bool
    has_queries: bool
    is_shared: bool
    has_norm: bool


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A classifier: pooling, a dense layer with its activation, perhaps a norm, then the labels.

    Attributes:
        pooling: Of the row's vectors: the first token's, or their mean.
        activation: One of `ACTIVATIONS`.
    """

    num_labels: int
    activation: str
    pooling: HeadPooling = "cls"
    dense_bias: bool = True
    has_norm: bool = False


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder.

    Attributes:
        architecture: As in the config, for people.
        max_tokens: The longest input, special tokens included.
        num_positions: Rows of the table of positions that are added; 0 without one.
        first_position: Row of the first token: 0, or after the padding row in RoBERTa.
        num_types: Rows of the token-type table; 0 without one.
        activation: One of `ACTIVATIONS`.
        is_pre_norm: Norms stand before attention and MLP, and one behind the last layer; otherwise
            behind each sublayer's residual sum.
        is_gated: The MLP is `down(activation(gate) * up)` with gate and up in one product.
        num_relative_buckets: Of a bias by relative distance that all layers share; 0 without one.
        has_distance_bias: Scores fall with distance, in each head at a rate of its own (ALiBi).
        disentangled: Scores depend on tokens and distances; None is off.
        embedding_size: Width of the tables and of their norm, behind which a product with a bias
            stands; None is the hidden size, and no product.
        has_embedding_norm: A norm stands behind the embedding.
        has_rms_norm: All norms are RMSNorm.
        has_qk_norm: Queries are normalised, all heads together, and so are keys.
        has_sum_norm: What attention gives is added to the residual and normalised, before it is
            added once more behind that; only for post-norm.
        has_expert_bias: What the experts of a layer give together has a bias.
        head: The classifier; None for an encoder that makes embeddings.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    layers: tuple[EncoderLayerSpec, ...]
    max_tokens: int
    activation: str
    norm_eps: float
    num_positions: int = 0
    first_position: int = 0
    num_types: int = 0
    is_pre_norm: bool = False
    is_gated: bool = False
    norm_bias: bool = True
    qkv_bias: bool = True
    o_bias: bool = True
    up_bias: bool = True
    down_bias: bool = True
    num_relative_buckets: int = 0
    has_distance_bias: bool = False
    disentangled: DisentangledSpec | None = None
    embedding_size: int | None = None
    has_embedding_norm: bool = True
    has_rms_norm: bool = False
    has_qk_norm: bool = False
    has_sum_norm: bool = False
    has_expert_bias: bool = True
    head: HeadSpec | None = None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self.layers)
