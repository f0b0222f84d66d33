"""What the recurrent mixers are, as frozen values."""

from dataclasses import dataclass
from math import prod
from typing import Final

StateShapes = tuple[tuple[int, ...], ...]
"""Of the arrays, all float32, that one layer carries from one token of a sequence to the next."""

STATE_ITEM_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ShortConvSpec:
    """A gated causal convolution over the last few tokens, channel by channel (LFM2).

    Attributes:
        channels: Of the convolution: the width of the residual.
        kernel_size: Tokens that it sees, the newest one included.
        bias: Projections and convolution carry one.
    """

    channels: int
    kernel_size: int
    bias: bool = False

    @property
    def state_shapes(self) -> StateShapes:
        """The inputs of the last tokens, oldest first."""
        return ((self.kernel_size - 1, self.channels),)

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return bytes_of(self.state_shapes)


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
    """A gated delta net: each head's matrix forgets, and corrects what it recalls for a key.

    From arXiv 2412.06464.

    Attributes:
        num_key_heads: Of queries and of keys.
        num_value_heads: A multiple of `num_key_heads`; neighbours share a query and a key.
        key_dim: Width of a query or key head.
        value_dim: Width of a value head.
        kernel_size: Tokens that the convolution before it sees, the newest one included.
        max_strength: Of a correction; above 1 it may turn what is remembered round (OLMo hybrid).
        norm_eps: Of the norm of what is recalled; None is the decoder's.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel_size: int
    max_strength: float = 1.0
    norm_eps: float | None = None

    @property
    def keys_size(self) -> int:
        """Width of all key heads, and of all query heads."""
        return self.num_key_heads * self.key_dim

    @property
    def values_size(self) -> int:
        """Width of all value heads, and of the gate."""
        return self.num_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.keys_size + self.values_size

    @property
    def state_shapes(self) -> StateShapes:
        """The convolution's last inputs, oldest first, and the matrix of each head."""
        return (
            (self.kernel_size - 1, self.channels),
            (self.num_value_heads, self.key_dim, self.value_dim),
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return bytes_of(self.state_shapes)


@dataclass(frozen=True, slots=True)
class MambaSpec:
    """A selective state space with one decay a head (Mamba-2, arXiv 2405.21060).

    Attributes:
        num_heads, head_dim: Of the values; their product is the inner width.
        num_groups: Of heads, which share what writes to their states and what reads them.
        state_size: Numbers for each value.
        kernel_size: Tokens that the convolution before it sees, the newest one included.
        conv_bias, proj_bias, out_bias: Whether convolution, input and output projection carry one.
        time_limits: Of the step in time after softplus.
        norm_groups: Parts of the values that are normalised behind the state space, each for
            itself; 0 is no norm.
        is_normed_first: Before the gate instead of behind it.
        multipliers: Of the parts of the input projection (gate, values, what writes, what reads,
            time) as it comes out, bias included (Falcon-H1).
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    kernel_size: int
    conv_bias: bool = True
    proj_bias: bool = False
    out_bias: bool = False
    time_limits: tuple[float, float] = (0.0, float("inf"))
    norm_groups: int = 1
    is_normed_first: bool = False
    multipliers: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)

    @property
    def inner_size(self) -> int:
        """Width of all values, and of the gate."""
        return self.num_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Width of what writes to the states, and of what reads them, for all groups."""
        return self.num_groups * self.state_size

    @property
    def channels(self) -> int:
        """Of the convolution: values, what writes, what reads."""
        return self.inner_size + 2 * self.group_size

    @property
    def state_shapes(self) -> StateShapes:
        """The convolution's last inputs, oldest first, and the states of each head."""
        return (
            (self.kernel_size - 1, self.channels),
            (self.num_heads, self.head_dim, self.state_size),
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return bytes_of(self.state_shapes)


RecurrentSpec = ShortConvSpec | DeltaNetSpec | MambaSpec
"""A mixer whose state has one size, however long the sequence is."""


def bytes_of(shapes: StateShapes) -> int:
    """Bytes of one state of these shapes."""
    return sum(map(prod, shapes)) * STATE_ITEM_BYTES
