"""What a decoder is, as frozen values: every axis on which model families differ.

All families are one residual stack that differs along these axes. A value that is named
here but not computed by `engine_worker.compute.models.decoder` is refused at load by
`engine_worker.compute.models.support.check_supported`; nothing is ever ignored.
"""

from dataclasses import dataclass
from enum import StrEnum

from engine_worker.compute.models.recurrent.specs import RecurrentSpec


class NormKind(StrEnum):
    """How a vector is normalised."""

    RMS = "rms"
    RMS_PLUS_ONE = "rms_plus_one"
    LAYER = "layer"


class NormPlacement(StrEnum):
    """Where a layer's norms stand relative to its two sublayers.

    Before each, behind each, both; or one norm that attention and MLP read side by side.
    """

    PRE = "pre"
    POST = "post"
    SANDWICH = "sandwich"
    PARALLEL = "parallel"


class QkNorm(StrEnum):
    """Normalisation of queries and keys before the rotary embedding.

    With weights that all heads share, over all heads together, with weights of each head, or by
    the root of the mean square alone (which a rotation leaves as it is).
    """

    NONE = "none"
    PER_HEAD = "per_head"
    FULL_WIDTH = "full_width"
    EACH_HEAD = "each_head"
    WEIGHTLESS = "weightless"


class RopeKind(StrEnum):
    """How the rotary frequencies are derived from theta (names of Hugging Face's `rope_type`)."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    DYNAMIC = "dynamic"
    LONGROPE = "longrope"
    PROPORTIONAL = "proportional"


class Activation(StrEnum):
    """The activation of the MLP's gate (names of Hugging Face's `hidden_act`)."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"
    GELU = "gelu"
    QUICK_GELU = "quick_gelu"
    RELU = "relu"
    RELU_SQUARED = "relu2"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """A rotary position embedding.

    Attributes:
        factor: Context extension: frequencies are divided by it (`linear`; in parts `llama3`,
            `yarn`).
        original_max_position_embeddings: Context length before the extension, in tokens.
        low_freq_factor, high_freq_factor: Of `llama3`.
        beta_fast, beta_slow: Rotations at which `yarn` blends from one regime to the other.
        attention_factor: Multiplies cosine and sine (`yarn`'s mscale, `longrope`); 1 elsewhere.
        truncate: Whether `yarn` rounds its correction range to whole dimensions.
        partial_factor: Share of each head that is rotated.
        interleaved: Pairs are neighbours (2i, 2i + 1) instead of halves (i, i + d/2).
        short_factors, long_factors: Of `longrope`, one for each rotated pair: frequencies are
            divided by the long ones where the decoder serves more than the original length.
    """

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    partial_factor: float = 1.0
    interleaved: bool = False
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryScale:
    """Queries grow with their position p (Llama 4).

    They are multiplied by 1 + beta * ln(1 + floor((p + offset) / length)).
    """

    beta: float
    length: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Keys and values as one latent vector a token, which all heads share (MLA).

    Attributes:
        q_rank: Width between the two projections of queries; None is a single projection.
        kv_rank: Width of the latent.
        plain_dim: Of a head's query and key, the part without positions.
        value_dim: Of a head's value.
    """

    q_rank: int | None
    kv_rank: int
    plain_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one layer.

    Attributes:
        rope: None for a layer without positions (NoPE).
        window: The query at position i sees keys j with i - window < j <= i; None is all j <= i.
        chunk: The query at position i sees keys of its own chunk only, from the last multiple of
            `chunk` on; None is all j <= i.
        scale: Multiplies the scores q·k.
        softcap: Scores become softcap * tanh(scores / softcap); None is off.
        sinks: A learnt logit per head joins the softmax's denominator.
        query_scale: Multiplies queries after the rotation; None is off.
        latent: Keys and values are made of a latent; `head_dim` is the rotated part of a key then,
            which all heads share (`num_kv_heads` is 1). None is off.
        output_gate: What is attended to is multiplied by the sigmoid of a product of its own.
        value_norm: Each head of the values is normalised, without weights.
        is_value_of_key: Values are what the projection of keys gives, before norm and rotation.
        shared_from: Index of the earlier layer whose keys and values it reads; it projects and
            stores none of its own then. None is off.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None
    window: int | None = None
    chunk: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    softcap: float | None = None
    sinks: bool = False
    query_scale: QueryScale | None = None
    output_gate: bool = False
    latent: LatentSpec | None = None
    value_norm: bool = False
    is_value_of_key: bool = False
    shared_from: int | None = None

    @property
    def cached_value_dim(self) -> int:
        """Width of what the cache holds as a token's value, for each key head."""
        return self.head_dim if self.latent is None else self.latent.kv_rank

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def projected_sizes(self) -> tuple[int, int, int]:
        """Widths of queries, keys and values as the fused projection gives them; 0 is none."""
        if self.shared_from is not None:
            return self.q_size, 0, 0
        return self.q_size, self.kv_size, 0 if self.is_value_of_key else self.kv_size


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A dense MLP: `down(activation(gate(x)) * up(x))`, without `gate` when not gated.

    Attributes:
        clamp: GPT-OSS: gate(x) is cut above it, up(x) above it and below its negative; None is off.
        up_offset: Added to up(x).
        gate_multiplier: Of gate(x).
        gate_cutoff: Gemma 3n: of each token's gate(x) only what is so many standard deviations
            above its mean goes on, and less that; None is off.
    """

    intermediate_size: int
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    up_offset: float = 0.0
    gate_cutoff: float | None = None
    gate_multiplier: float = 1.0


class RouterScore(StrEnum):
    """What a router makes of its logits."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts in place of the MLP.

    A softmax over all experts whose chosen weights are normalised is the softmax over the chosen
    ones, so there is no axis for the order of the two.

    Attributes:
        expert: Shape of each routed expert.
        num_experts_per_token: Experts chosen for one token.
        score: Of the router.
        normalize_weights: The chosen experts' weights are rescaled to sum to 1.
        weights_multiplier: Of the chosen experts' weights, after that.
        router_bias: The router's logits have a bias.
        correction_bias: Added to the scores by which experts are chosen, not to their weights.
        num_groups: Equal groups into which neighbouring experts fall.
        num_groups_per_token: Groups from which a token's experts come: those with the best scores.
        num_group_scores: A group's score is the sum of so many of its best experts'.
        weighs_input: The weight multiplies what goes into an expert, not what comes out (Llama 4).
        shared: The expert that sees every token.
        shared_gate: Its result is multiplied by the sigmoid of a product of its own.
        is_beside_dense: Gemma 4: the expert that sees every token and the chosen ones have norms
            of their own, and the router has learnt scales of its inputs and of each expert.
        latent_size: Width to which a token is brought before its experts, and from which it comes
            back behind them (Nemotron-H); None is the residual's.
    """

    num_experts: int
    num_experts_per_token: int
    expert: MlpSpec
    score: RouterScore = RouterScore.SOFTMAX
    normalize_weights: bool = True
    weights_multiplier: float = 1.0
    router_bias: bool = False
    correction_bias: bool = False
    num_groups: int = 1
    num_groups_per_token: int = 1
    num_group_scores: int = 1
    weighs_input: bool = False
    shared: MlpSpec | None = None
    shared_gate: bool = False
    is_beside_dense: bool = False
    latent_size: int | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer: a mixer of tokens, then MLP or experts, each round a residual.

    Attributes:
        mixer: Attention, or what carries a state from token to token.
        mlp: None where the next layer's mixer follows.
        is_beside: The mixer reads what that of the layer before it read, so that the two stand
            side by side; that layer has no MLP.
        norm_placement: Where it isn't the decoder's; None is that.
        mixer_multiplier, mlp_multiplier: Of what either adds to the residual, beside the decoder's.
    """

    mixer: AttentionSpec | RecurrentSpec
    mlp: MlpSpec | MoeSpec | None
    is_beside: bool = False
    norm_placement: NormPlacement | None = None
    mixer_multiplier: float = 1.0
    mlp_multiplier: float = 1.0

    @property
    def attention(self) -> AttentionSpec:
        """The mixer of a layer that attends; asking another one is a mistake of the caller."""
        assert isinstance(self.mixer, AttentionSpec), "a recurrent layer has no attention"
        return self.mixer

    @property
    def is_attention(self) -> bool:
        """Whether the layer attends to keys and values."""
        return isinstance(self.mixer, AttentionSpec)


@dataclass(frozen=True, slots=True)
class TokenInputSpec:
    """A vector of each token for each layer, added behind its MLP (Gemma 3n and 4).

    Attributes:
        width: Of a layer's vector.
        vocab_size: Tokens that have such vectors; those beyond have that of token 0.
        activation: Of the gate that the residual is for the vector.
    """

    width: int
    vocab_size: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class AltUpSpec:
    """Several residuals side by side, of which each layer computes one and predicts the others.

    AltUp is arXiv 2301.13310; LAuReL, arXiv 2411.07501, a second way round attention (Gemma 3n).

    Attributes:
        num_streams: Residuals.
        active: Which one goes through attention and MLP.
        has_output_scale: What the token's vector is gated by is scaled by a learnt vector.
        laurel_rank: Width between the two products round attention.
    """

    num_streams: int
    active: int
    has_output_scale: bool
    laurel_rank: int


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A whole decoder; hashable, so that programs can be keyed by it.

    Attributes:
        architecture: The name in `config.json`, for messages.
        max_position_embeddings: Longest context that the model was made for, in tokens.
        tied_head: The output head is the embedding matrix.
        norm_bias: Every LayerNorm has one.
        learned_positions: A vector for each of the `max_position_embeddings` positions is added to
            the embedding.
        served_length: The longest sequence that is to be served, in tokens, which decides between
            the factors of `longrope`; 0 is `max_position_embeddings`.
        eos_token_ids: End-of-sequence ids of `config.json`; may be empty.
        embedding_multiplier, residual_multiplier, logits_multiplier: Scale the embedding, each
            sublayer's output and the logits.
        final_softcap: Logits become softcap * tanh(logits / softcap); None is off.
        token_inputs: Vectors of the tokens for each layer; None is off.
        alt_up: Residuals beside the one that is computed; None is off.
        layer_scales: The residual behind each layer is multiplied by a learnt number.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    max_position_embeddings: int
    norm_eps: float
    tied_head: bool
    norm_kind: NormKind = NormKind.RMS
    norm_placement: NormPlacement = NormPlacement.PRE
    norm_bias: bool = False
    learned_positions: bool = False
    served_length: int = 0
    eos_token_ids: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    final_softcap: float | None = None
    token_inputs: TokenInputSpec | None = None
    alt_up: AltUpSpec | None = None
    layer_scales: bool = False

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def num_layers_with_experts(self) -> int:
        """Layers whose MLP is a choice of experts."""
        return sum(isinstance(layer.mlp, MoeSpec) for layer in self.layers)

    def placement_in(self, layer: LayerSpec) -> NormPlacement:
        """Where the norms of one layer stand."""
        return layer.norm_placement or self.norm_placement

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all recurrent layers after some token; 0 without such layers."""
        return sum(
            layer.mixer.state_bytes
            for layer in self.layers
            if not isinstance(layer.mixer, AttentionSpec)
        )
