"""What a backend makes of a decoder's weights: the arrays that its programs take as arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.decoder import Parameter
from engine_worker.compute.models.integer_blocks import BlockFormat

HostArrays = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Shape and type of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Some declared weights as the arrays that stand for them.

    Attributes:
        name: For progress and messages.
        sources: The declared weights, as indices of `DecoderGraph.parameters`.
        parts: What `pack` gives.
        pack: Makes the parts of the sources' values, on the host; raises ValueError for values that
            the type can't hold.
        stored: The one source is wanted as the checkpoint keeps it instead of its values: an
            iterator over one `BlockMatrix` of this format, or over those of all experts.
        row_step: `pack` of so many rows of the one source (of its one matrix, where it is stored),
            or of a multiple, or of its last ones, gives the next entries of each part; 0 where it
            wants all of them.
    """

    name: str
    sources: tuple[int, ...]
    parts: tuple[PartSpec, ...]
    pack: Callable[[Sequence[Any]], HostArrays]
    stored: BlockFormat | None = None
    row_step: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """All weights of a decoder as a backend takes them.

    Attributes:
        weights: In the order of the leaves; a weight with several parts is several leaves.
        layout: Names how they are packed; files of another layout are not read. Empty where the
            checkpoint's own numbers are taken as they are, so that no file of them is worth while.
    """

    weights: tuple[PackedWeight, ...]
    layout: str

    @property
    def parts(self) -> list[PartSpec]:
        """Of all weights, in the order of the leaves."""
        return [part for weight in self.weights for part in weight.parts]

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.size_bytes for weight in self.weights)


def plain(index: int, parameter: Parameter) -> PackedWeight:
    """A weight that is taken as it is declared."""
    return PackedWeight(
        parameter.path,
        (index,),
        (PartSpec(parameter.shape, parameter.dtype),),
        lambda values: (values[0],),
        row_step=1,
    )
