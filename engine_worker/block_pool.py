"""Accounts for KV blocks: who holds which, how many are free, and how a prompt's blocks hash."""

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_HASH_BYTES = 16


class BlockPool:
    """A fixed number of KV blocks with reference counts; ids are 0 ≤ block_id < num_blocks.

    A block is free when nobody holds it. Holders are counted, so that full blocks with the same
    content can be shared by several requests. The block freed longest ago is handed out first,
    which is the order in which cached contents should be given up.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: deque[int] = deque(range(num_blocks))
        self._num_holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_token_capacity(self) -> int:
        """Tokens that fit when one request has every block."""
        return self.num_blocks * self.block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take free blocks, each with one holder; None, and nothing taken, when too few are free.

        The caller gives them back with `release`.
        """
        if num_blocks > len(self._free):
            return None
        block_ids = [self._free.popleft() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._num_holders[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to blocks that are held already."""
        for block_id in block_ids:
            assert self._num_holders[block_id] > 0, "a free block cannot be shared"
            self._num_holders[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one holder from each block; those that lose their last become free.

        Later blocks are freed first: the beginning of a prompt is what others may share, so it
        should be reused last.
        """
        for block_id in reversed(block_ids):
            assert self._num_holders[block_id] > 0, "a free block cannot be released"
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id] == 0:
                self._free.append(block_id)

    def num_holders(self, block_id: int) -> int:
        """How many requests hold the block."""
        return self._num_holders[block_id]


def block_hashes(token_ids: Sequence[int], block_size: int, salt: str) -> tuple[bytes, ...]:
    """Chained hashes of the full blocks of a prompt.

    Each hash (BLAKE2b, 16 bytes) covers its block's tokens and, through its parent's hash, all
    before them; the chain starts from the salt, so that tenants can't find out each other's
    prompts by what is cached.

    Args:
        token_ids: The prompt.
        block_size: Tokens a block; a last, partly filled block has no hash.
        salt: The tenant.
    """
    parent = blake2b(salt.encode(), digest_size=BLOCK_HASH_BYTES, person=b"penstock-block").digest()
    hashes = []
    tokens = array("I", token_ids)
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = tokens[start : start + block_size].tobytes()
        parent = blake2b(parent + block, digest_size=BLOCK_HASH_BYTES).digest()
        hashes.append(parent)
    return tuple(hashes)
