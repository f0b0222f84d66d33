"""Chooses engines by what they have computed already: the longest cached beginning of a prompt."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.dispatch.slots import Accepts, EngineHandle
from protocol.wire.messages import CachedBlocks
from protocol.wire.peers import Peer

MAX_BLOCKS = 1_000_000
"""Names that are kept of one engine; an engine that reports more is routed to by the first."""
MAX_EXPECTED = 8192
_MAX_HASH_BYTES = 64
_MIN_SLACK = 2

RoutingOutcome = Literal["cached", "overloaded", "none"]


class Route(NamedTuple):
    """Where a prompt goes.

    Attributes:
        engine: To this engine.
        outcome: `cached`: part of it is there; `overloaded`: more of it is at engines that have
            too much to do; `none`: it is nowhere.
    """

    engine: EngineHandle
    outcome: RoutingOutcome


@dataclass(slots=True)
class _EngineBlocks:
    """What one engine has, and what it will have once it computed what it was just given."""

    reported: set[bytes] = field(default_factory=set)
    expected: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def num_cached(self, block_hashes: Sequence[bytes]) -> int:
        for count, name in enumerate(block_hashes):
            if name not in self.reported and name not in self.expected:
                return count
        return len(block_hashes)


class PrefixRouter:
    """Knows the cached blocks of every engine by name.

    The engine with the longest cached beginning is chosen unless it is overloaded: it is beyond
    its credit, or it has as much as it can run at a time while another engine has not, or it has
    more unfinished work than the least loaded one by over a quarter of what it can run at a time.
    Without a cached beginning a prompt stays where it was prepared, at the least loaded engine.
    """

    def __init__(self) -> None:
        self._blocks: dict[Peer, _EngineBlocks] = {}

    def on_cached_blocks(self, peer: Peer, report: CachedBlocks) -> None:
        """An engine's report, in order."""
        blocks = self._blocks.setdefault(peer, _EngineBlocks())
        if report.is_reset:
            blocks.reported.clear()
            blocks.expected.clear()
        for name in report.removed:
            blocks.reported.discard(name)
            blocks.expected.pop(name, None)
        for name in report.added:
            if len(name) <= _MAX_HASH_BYTES and len(blocks.reported) < MAX_BLOCKS:
                blocks.reported.add(name)
            blocks.expected.pop(name, None)

    def forget(self, peer: Peer) -> None:
        """An engine is gone."""
        self._blocks.pop(peer, None)

    def expect(self, engine: EngineHandle, block_hashes: Iterable[bytes]) -> None:
        """An engine was given a prompt: the next one like it can follow before it is reported."""
        blocks = self._blocks.get(engine.peer)
        if blocks is None:
            return  # it reports nothing, so nothing would ever be taken back
        for name in block_hashes:
            if name not in blocks.reported:
                blocks.expected[name] = None
                blocks.expected.move_to_end(name)
        while len(blocks.expected) > MAX_EXPECTED:
            blocks.expected.popitem(last=False)

    def choose(
        self,
        engines: Sequence[EngineHandle],
        current: EngineHandle,
        block_hashes: Sequence[bytes],
        tokens: int,
        accepts: Accepts,
    ) -> Route:
        """The best engine for a prompt that has a slot.

        Args:
            engines: The live engines of the model.
            current: Where the slot is.
            block_hashes: Names of the prompt's full blocks, in order.
            tokens: Upper bound of prompt and output.
            accepts: Which engines can do the work at all.
        """
        counts = {
            engine: self._num_cached(engine, block_hashes)
            for engine in engines
            if engine is current or accepts(engine)
        }
        least = min(engine.num_unfinished for engine in (*counts, current))
        free = [
            engine
            for engine in counts
            if engine is not current
            and engine.can_take(tokens)
            and not _is_overloaded(engine, least)
        ]
        best, count = current, self._num_cached(current, block_hashes)
        for engine in sorted(free, key=lambda engine: engine.num_unfinished):
            if counts[engine] > count:
                best, count = engine, counts[engine]
        if count < max(counts.values(), default=0):
            return Route(best, "overloaded")
        return Route(best, "cached" if count else "none")

    def _num_cached(self, engine: EngineHandle, block_hashes: Sequence[bytes]) -> int:
        blocks = self._blocks.get(engine.peer)
        return 0 if blocks is None else blocks.num_cached(block_hashes)


def _is_overloaded(engine: EngineHandle, least: int) -> bool:
    """Whether an engine has too much to do, compared with the least loaded one."""
    max_num_seqs = max(1, engine.offer.max_num_seqs)
    slack = max(_MIN_SLACK, max_num_seqs // 4)
    return engine.num_unfinished > least + slack or engine.num_unfinished >= max_num_seqs > least
