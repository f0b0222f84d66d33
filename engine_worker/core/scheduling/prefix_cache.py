"""Finds the blocks of a choice that are computed already, and who is computing the others."""

from collections.abc import Callable

from engine_worker.core.choice.choice import Choice
from engine_worker.core.scheduling.block_hashes import block_hash, root_hash
from engine_worker.core.scheduling.block_pool import BlockPool


class PrefixCache:
    """Names the full blocks of choices in the pool, and shares them with whoever needs the same.

    Only full blocks are named, and nobody writes to a block that has a name. At least the last
    token of a choice is always computed, because the next one is sampled from it. A choice whose
    next block is being computed by another one waits for that, so that the choices of one request,
    and choices that arrive together, compute a common prompt once.

    Args:
        pool: Holds the blocks and their names.
        wake: Called with a choice when the block that it waits for is there, or never will be.
    """

    def __init__(self, pool: BlockPool, wake: Callable[[Choice], None]) -> None:
        self._pool = pool
        self._wake = wake
        self._computing: dict[bytes, Choice] = {}
        self._parked: dict[bytes, dict[Choice, None]] = {}
        self.num_parked = 0

    def find(self, choice: Choice) -> list[int]:
        """The blocks, from the first on, that need not be computed; nothing is taken yet."""
        found: list[int] = []
        if choice.reads_cache:
            for content in self._usable_hashes(choice):
                block_id = self._pool.find(content)
                if block_id is None:
                    break
                found.append(block_id)
        return found

    def awaited(self, choice: Choice, num_found: int) -> bytes | None:
        """The last block that somebody else is computing right after the blocks that were found.

        None when nobody computes the next one: then the choice has to.
        """
        last = None
        if choice.reads_cache:
            for content in self._usable_hashes(choice)[num_found:]:
                if content not in self._computing:
                    break
                last = content
        return last

    def park(self, choice: Choice, content: bytes) -> None:
        """Let a choice wait for a block that somebody is computing."""
        assert content in self._computing
        self._parked.setdefault(content, {})[choice] = None
        choice.awaited_block = content
        self.num_parked += 1

    def unpark(self, choice: Choice) -> None:
        """A choice that waits for a block has ended."""
        content = choice.awaited_block
        assert content is not None
        waiters = self._parked[content]
        del waiters[choice]
        if not waiters:
            del self._parked[content]
        choice.awaited_block = None
        self.num_parked -= 1

    def parked(self) -> tuple[Choice, ...]:
        """Everybody who waits for a block."""
        return tuple(choice for waiters in self._parked.values() for choice in waiters)

    def begin(self, choice: Choice, num_found: int) -> None:
        """A choice starts to compute what follows the blocks that were found for it."""
        choice.num_named_blocks = num_found
        num_full = choice.num_tokens // self._pool.block_size
        for content in self._hashes(choice, num_full)[num_found:]:
            if self._pool.find(content) is None:
                self._computing.setdefault(content, choice)

    def commit(self, choice: Choice) -> None:
        """Name the blocks that the choice has filled up to `num_computed_tokens`."""
        first = choice.num_named_blocks
        end = choice.num_computed_tokens // self._pool.block_size
        if first >= end:
            return
        hashes = self._hashes(choice, end)
        for index in range(first, end):
            self._pool.register(choice.block_ids[index], hashes[index])
            self._let_go(choice, hashes[index])
        choice.num_named_blocks = end

    def end(self, choice: Choice) -> None:
        """A choice computes nothing any more; called while it still has its blocks."""
        for content in choice.block_hashes[choice.num_named_blocks :]:
            self._let_go(choice, content)
        choice.num_named_blocks = 0

    def _let_go(self, choice: Choice, content: bytes) -> None:
        if self._computing.get(content) is not choice:
            return
        del self._computing[content]
        for waiter in self._parked.pop(content, ()):
            waiter.awaited_block = None
            self.num_parked -= 1
            self._wake(waiter)

    def _usable_hashes(self, choice: Choice) -> list[bytes]:
        return self._hashes(choice, (choice.num_tokens - 1) // self._pool.block_size)

    def _hashes(self, choice: Choice, num_blocks: int) -> list[bytes]:
        """The first hashes of a choice; computed once, as far as they were asked for."""
        size = self._pool.block_size
        hashes = choice.block_hashes
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else root_hash(choice.cache_salt)
            for start in range(len(hashes) * size, num_blocks * size, size):
                parent = block_hash(parent, choice.token_ids(start, start + size))
                hashes.append(parent)
        return hashes if len(hashes) == num_blocks else hashes[:num_blocks]
