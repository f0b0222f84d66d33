"""Which layers of a decoder share a table of blocks: those that see all tokens, and the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The cache groups of a decoder, one or two.

    Attributes:
        of_layer: Index of each layer's group.
        reaches: Of each group: the token at position i sees those at positions above i - reach
            only; None is all before it. Only the last group has a number.
    """

    of_layer: tuple[int, ...]
    reaches: tuple[int | None, ...]

    def blocks_by_group(self, num_blocks: int | Sequence[int]) -> tuple[int, ...]:
        """A number of blocks for each group; one number is for each of them."""
        if isinstance(num_blocks, int):
            return (num_blocks,) * len(self.reaches)
        assert len(num_blocks) == len(self.reaches)
        return tuple(num_blocks)


def layer_groups(spec: DecoderSpec) -> LayerGroups:
    """The groups of a decoder's layers.

    Layers behind windows of several widths are one group with the widest. A window as wide as the
    longest sequence is none. Recurrent layers are with those that see all tokens: their states lie
    with blocks.
    """
    longest = spec.served_length or spec.max_position_embeddings
    reaches: list[int | None] = []
    for layer in spec.layers:
        mixer = layer.mixer
        reach = _reach(mixer) if isinstance(mixer, AttentionSpec) else None
        reaches.append(None if reach is None or reach >= longest else reach)
    # Pages that several layers read are needed as far as the widest of them reaches.
    owners = [
        layer.mixer.shared_from
        if isinstance(layer.mixer, AttentionSpec) and layer.mixer.shared_from is not None
        else index
        for index, layer in enumerate(spec.layers)
    ]
    for index, owner in enumerate(owners):
        if reaches[index] is None:
            reaches[owner] = None
    windows = [
        reach
        for index, reach in enumerate(reaches)
        if reach is not None and reaches[owners[index]] is not None
    ]
    if not windows:
        return LayerGroups((0,) * spec.num_layers, (None,))
    if len(windows) == spec.num_layers:
        return LayerGroups((0,) * spec.num_layers, (max(windows),))
    of_layer = tuple(int(reaches[owner] is not None) for owner in owners)
    return LayerGroups(of_layer, (None, max(windows)))


def _reach(attention: AttentionSpec) -> int | None:
    """How many tokens, its own included, one sees at most."""
    seen = [width for width in (attention.window, attention.chunk) if width is not None]
    return min(seen, default=None)
