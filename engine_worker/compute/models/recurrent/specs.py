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


RecurrentSpec = ShortConvSpec
"""A mixer whose state has one size, however long the sequence is."""


def bytes_of(shapes: StateShapes) -> int:
    """Bytes of one state of these shapes."""
    return sum(map(prod, shapes)) * STATE_ITEM_BYTES
