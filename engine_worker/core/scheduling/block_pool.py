"""Accounts for KV blocks: who holds which, what full blocks contain, and which are free."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentChanges:
    """How the known contents differ from those at the last look.

    Attributes:
        is_reset: All contents of before are void.
        added: Hashes that are known now; after a reset all of them.
        removed: Hashes that are not known any more.
    """

    is_reset: bool
    added: tuple[bytes, ...]
    removed: tuple[bytes, ...]


class BlockPool:
    """A fixed number of KV blocks with reference counts; ids are 0 ≤ block_id < num_blocks.

    A block is free when nobody holds it. Holders are counted, so that full blocks with the same
    content can be shared by several requests. A free block keeps its content, if it has a name,
    until it is handed out: blocks without known content go first, then the one freed longest ago.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Free blocks: without known content, and with it, longest free first.
        self._empty: deque[int] = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._num_holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._is_reset = False
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._cached)

    @property
    def empty_blocks(self) -> tuple[int, ...]:
        """Blocks that nobody holds and that hold nothing."""
        return tuple(self._empty)

    @property
    def num_token_capacity(self) -> int:
        """Tokens that fit when one request has every block."""
        return self.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens occupy."""
        return -(-num_tokens // self.block_size)

    def num_holders(self, block_id: int) -> int:
        """How many requests hold the block."""
        return self._num_holders[block_id]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take free blocks, each with one holder; None, and nothing taken, when too few are free.

        Their contents are given up. The caller gives the blocks back with `release`.
        """
        if num_blocks > self.num_free:
            return None
        block_ids = [self._take_free() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to blocks that are held already, or free with known content."""
        for block_id in block_ids:
            if self._num_holders[block_id] == 0:
                assert self._hashes[block_id] is not None, "a block without content can't be shared"
                del self._cached[block_id]
            self._num_holders[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one holder from each block; those that lose their last become free.

        Later blocks are freed first: the beginning of a prompt is what others may share, so it
        should be reused last.
        """
        for block_id in reversed(block_ids):
            assert self._num_holders[block_id] > 0, "a free block cannot be released"
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id] > 0:
                continue
            if self._hashes[block_id] is None:
                self._empty.append(block_id)
            else:
                self._cached[block_id] = None

    def register(self, block_id: int, content: bytes) -> None:
        """Say what a held block contains; of equal contents the first block keeps the name."""
        assert self._num_holders[block_id] > 0, "only a held block can have been computed"
        assert self._hashes[block_id] is None, "a block's content can't change while it is held"
        if content in self._block_of:
            return
        self._hashes[block_id] = content
        self._block_of[content] = block_id
        if content in self._removed:
            del self._removed[content]
        else:
            self._added[content] = None

    def find(self, content: bytes) -> int | None:
        """The block with this content."""
        return self._block_of.get(content)

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """How many of some blocks are free."""
        return sum(self._num_holders[block_id] == 0 for block_id in block_ids)

    def freed_by(self, holdings: Iterable[Iterable[int]]) -> set[int]:
        """The blocks that would be free if some holders released all that each of them holds."""
        counts = Counter(block_id for held in holdings for block_id in held)
        return {one for one, count in counts.items() if count == self._num_holders[one]}

    def forget(self, block_ids: Iterable[int]) -> None:
        """The contents of some blocks are not to be used by anybody else."""
        for block_id in block_ids:
            if self._hashes[block_id] is not None:
                self._unname(block_id)
                if self._num_holders[block_id] == 0:
                    del self._cached[block_id]
                    self._empty.append(block_id)

    def forget_unused(self) -> int:
        """The contents of all free blocks are forgotten; how many those were."""
        block_ids = list(self._cached)
        self.forget(block_ids)
        return len(block_ids)

    def forget_all(self) -> None:
        """All contents are lost; who holds what stays as it is."""
        self._empty.extend(self._cached)
        self._cached.clear()
        self._hashes = [None] * self.num_blocks
        self._block_of.clear()
        self._added.clear()
        self._removed.clear()
        self._is_reset = True

    def contents(self) -> tuple[bytes, ...]:
        """The names of all contents."""
        return tuple(self._block_of)

    def take_changes(self) -> ContentChanges | None:
        """What changed since the last call; None when nothing did."""
        if not (self._is_reset or self._added or self._removed):
            return None
        changes = ContentChanges(self._is_reset, tuple(self._added), tuple(self._removed))
        self._is_reset = False
        self._added.clear()
        self._removed.clear()
        return changes

    def _take_free(self) -> int:
        if self._empty:
            return self._empty.popleft()
        block_id, _ = self._cached.popitem(last=False)
        self._unname(block_id)
        return block_id

    def _unname(self, block_id: int) -> None:
        content = self._hashes[block_id]
        assert content is not None
        self._hashes[block_id] = None
        del self._block_of[content]
        if content in self._added:
            del self._added[content]
        else:
            self._removed[content] = None
