"""Cache groups: layers that keep the same tokens of a sequence, and how many blocks that takes."""

from collections.abc import Sequence
from dataclasses import dataclass

NO_BLOCK = -1
"""In place of a block id: the block was freed, no later token sees what it held."""


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that keep the same tokens of a sequence, and so share one table of blocks.

    Attributes:
        num_blocks: KV blocks that its block ids may name, 0 ≤ block_id < num_blocks.
        reach: The token at position i sees those at positions above i - reach only; None is all
            before it. Blocks that lie wholly behind it are freed.
    """

    num_blocks: int
    reach: int | None = None


def most_window_blocks(reach: int, num_step_tokens: int, block_size: int) -> int:
    """The most blocks of a sequence that one step reads or writes behind a window.

    Args:
        reach: Tokens that one sees, its own included.
        num_step_tokens: Of the sequence, in one step.
        block_size: Tokens a block.
    """
    num_tokens = reach - 1 + num_step_tokens
    return (num_tokens - 2) // block_size + 2


def longest_sequence(
    groups: Sequence[CacheGroup], block_size: int, num_step_tokens: int
) -> int | None:
    """The longest sequence, in tokens, that gets on when it runs alone; None is any length.

    Args:
        groups: Of the cache.
        block_size: Tokens a block.
        num_step_tokens: The most tokens of a sequence in one step.
    """
    lengths = [
        group.num_blocks * block_size
        for group in groups
        if group.reach is None
        or most_window_blocks(group.reach, num_step_tokens, block_size) > group.num_blocks
    ]
    return min(lengths, default=None)


def longest_scored(
    groups: Sequence[CacheGroup], block_size: int, num_row_tokens: int
) -> int | None:
    """The longest prompt and question together that are scored when nothing else runs, tokens.

    A question's blocks begin with a copy of the prompt's last one where that isn't full, so they
    take one block more than one sequence of all these tokens would. None is any length.

    Args:
        groups: Of the cache.
        block_size: Tokens a block.
        num_row_tokens: The most tokens of a question in one call.
    """
    longest = longest_sequence(groups, block_size, block_size + num_row_tokens)
    return None if longest is None else longest - block_size
