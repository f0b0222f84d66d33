"""The blocks of one cache group: which of them a choice holds while its tokens are computed."""

from collections.abc import Iterable

from engine_worker.core.choice.cache_group import NO_BLOCK, most_window_blocks
from engine_worker.core.choice.choice import Choice
from engine_worker.core.scheduling.block_pool import BlockPool


class GroupBlocks:
    """Blocks for the layers of one cache group, taken and freed as a choice gets on.

    Where layers see all tokens, a choice has the blocks of all that it has. Where they see a window
    only, its blocks behind the window are freed, and of those before it there are as many as the
    next step fills: the table keeps its length, with `NO_BLOCK` for what was freed.

    Args:
        pool: Of the group.
        reach: See `CacheGroup`.
        index: Which table of a choice is the group's: 0 or 1.
        num_step_tokens: The most tokens of a choice in one step.
    """

    def __init__(
        self, pool: BlockPool, reach: int | None, index: int, num_step_tokens: int
    ) -> None:
        self.pool = pool
        self._reach = reach
        self._is_first = index == 0
        self._most: int | None = None
        if reach is not None:
            self._most = most_window_blocks(reach, num_step_tokens, pool.block_size)
        # A few blocks stay free at admission, or the next decode would preempt the new choice.
        self.num_reserved = -(-pool.num_blocks // 100)

    @property
    def has_window(self) -> bool:
        """Whether blocks are freed while a choice runs."""
        return self._reach is not None

    @property
    def num_spare(self) -> int:
        """Free blocks beyond those that are kept for new choices."""
        return max(0, self.pool.num_free - self.num_reserved)

    def table(self, choice: Choice) -> list[int]:
        """The group's blocks of a choice."""
        return choice.block_ids if self._is_first else choice.window_block_ids

    def set_table(self, choice: Choice, block_ids: list[int]) -> None:
        """Give a choice a new table: whoever knows the old one sees that it is another."""
        if self._is_first:
            choice.block_ids = block_ids
        else:
            choice.window_block_ids = block_ids

    def num_behind(self, num_computed: int) -> int:
        """Blocks, from the first on, that no token after the first `num_computed` sees."""
        if self._reach is None:
            return 0
        return max(0, num_computed - self._reach + 1) // self.pool.block_size

    def num_wanted(self, num_computed: int, num_tokens: int) -> int:
        """The length of the table of a choice, freed blocks included, before its next step."""
        num_blocks = self.pool.num_blocks_for(num_tokens)
        if self._most is None:
            return num_blocks
        return min(num_blocks, self.num_behind(num_computed) + self._most)

    def num_missing(self, choice: Choice) -> int:
        """Blocks that a choice lacks for its next step."""
        num_got = len(self.table(choice))
        num_tokens = choice.num_tokens
        if num_got * self.pool.block_size >= num_tokens:  # as it mostly is
            return 0
        return max(0, self.num_wanted(choice.num_computed_tokens, num_tokens) - num_got)

    def slide(self, choice: Choice) -> None:
        """Free what lies behind the window now; a prompt takes as much for what comes next."""
        table = self.table(choice)
        end = first = self.num_behind(choice.num_computed_tokens)
        while first > 0 and table[first - 1] != NO_BLOCK:
            first -= 1
        if first < end:
            self.pool.release(table[first:end])
            table[first:end] = [NO_BLOCK] * (end - first)
        if choice.num_uncomputed_tokens > 1:
            self.extend(choice, min(self.num_missing(choice), self.pool.num_free))

    def extend(self, choice: Choice, num_blocks: int) -> bool:
        """Add blocks to a choice's table; False, and nothing added, when too few are free."""
        block_ids = self.pool.allocate(num_blocks)
        if block_ids is None:
            return False
        self.table(choice).extend(block_ids)
        return True

    def release(self, choice: Choice) -> None:
        """Take all blocks from a choice."""
        self.pool.release(self.held(self.table(choice)))
        self.set_table(choice, [])

    def freed_by(self, choices: Iterable[Choice]) -> set[int]:
        """The blocks that would be free if these choices had none."""
        return self.pool.freed_by(self.held(self.table(choice)) for choice in choices)

    def held(self, table: Iterable[int]) -> list[int]:
        """The blocks of a table that were not freed."""
        if self._reach is None:
            return list(table)
        return [block_id for block_id in table if block_id != NO_BLOCK]
