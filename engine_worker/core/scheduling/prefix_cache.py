"""Finds the blocks of a choice that are computed already, and who is computing the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine_worker.core.choice.cache_group import NO_BLOCK
from engine_worker.core.choice.choice import Choice
from engine_worker.core.scheduling.block_hashes import block_hash, root_hash
from engine_worker.core.scheduling.group_blocks import GroupBlocks


@dataclass(frozen=True, slots=True)
class FoundBlocks:
    """The beginning of a choice that need not be computed.

    Attributes:
        num_blocks: How many full blocks it is long.
        tables: For each cache group its blocks; `NO_BLOCK` for those that nothing sees which is
            still to be computed.
    """

    num_blocks: int
    tables: tuple[list[int], ...]


class PrefixCache:
    """Names the full blocks of choices in the pools, and shares them with whoever needs the same.

    A block of tokens has one name, in every cache group. It can be shared where each group still
    has what the next token sees: all blocks before it, or those of its window.

    Only full blocks are named, and nobody writes to a block that has a name. At least the last
    token of a choice is always computed, because the next one is sampled from it. A choice whose
    next block is being computed by another one waits for that, so that the choices of one request,
    and choices that arrive together, compute a common prompt once.

    Args:
        groups: Hold the blocks and their names.
        wake: Called with a choice when the block that it waits for is there, or never will be.
    """

    def __init__(self, groups: Sequence[GroupBlocks], wake: Callable[[Choice], None]) -> None:
        self._groups = groups
        self._block_size = groups[0].pool.block_size
        self._wake = wake
        self._computing: dict[bytes, Choice] = {}
        self._parked: dict[bytes, dict[Choice, None]] = {}
        self.num_parked = 0

    def find(self, choice: Choice) -> FoundBlocks:
        """The blocks, from the first on, that need not be computed; nothing is taken yet."""
        hashes = self._usable_hashes(choice) if choice.reads_cache else []
        tables: list[list[int]] = [[] for _ in self._groups]
        # Of each group: where the blocks begin that it has up to here without a gap.
        first = [0] * len(self._groups)
        longest = 0
        for end, content in enumerate(hashes, start=1):
            is_enough = True
            for index, group in enumerate(self._groups):
                block_id = group.pool.find(content)
                tables[index].append(NO_BLOCK if block_id is None else block_id)
                if block_id is None:
                    first[index] = end
                is_enough &= first[index] <= group.num_behind(end * self._block_size)
            if is_enough:
                longest = end
            elif any(first[i] and not group.has_window for i, group in enumerate(self._groups)):
                break
        for index, group in enumerate(self._groups):
            behind = group.num_behind(longest * self._block_size)
            tables[index] = [NO_BLOCK] * behind + tables[index][behind:longest]
        return FoundBlocks(longest, tuple(tables))

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
        num_full = choice.num_tokens // self._block_size
        for content in self._hashes(choice, num_full)[num_found:]:
            if any(group.pool.find(content) is None for group in self._groups):
                self._computing.setdefault(content, choice)

    def commit(self, choice: Choice) -> None:
        """Name the blocks that the choice has filled up to `num_computed_tokens`."""
        first = choice.num_named_blocks
        end = choice.num_computed_tokens // self._block_size
        if first >= end:
            return
        hashes = self._hashes(choice, end)
        for index in range(first, end):
            for group in self._groups:
                group.pool.register(group.table(choice)[index], hashes[index])
            self._let_go(choice, hashes[index])
        choice.num_named_blocks = end

    def distrust(self, choice: Choice) -> None:
        """What a choice holds, and what it freed behind a window, is not to be used by others."""
        for group in self._groups:
            pool, table = group.pool, group.table(choice)
            pool.forget(group.held(table))
            for block_id, content in zip(table, choice.block_hashes, strict=False):
                if block_id == NO_BLOCK and (freed := pool.find(content)) is not None:
                    pool.forget([freed])

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
        return self._hashes(choice, (choice.num_tokens - 1) // self._block_size)

    def _hashes(self, choice: Choice, num_blocks: int) -> list[bytes]:
        """The first hashes of a choice; computed once, as far as they were asked for."""
        size = self._block_size
        hashes = choice.block_hashes
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else root_hash(choice.cache_salt)
            for start in range(len(hashes) * size, num_blocks * size, size):
                parent = block_hash(parent, choice.token_ids(start, start + size))
                hashes.append(parent)
        return hashes if len(hashes) == num_blocks else hashes[:num_blocks]
