"""Names the contents of KV blocks by hashes chained from a salt; equal names mean equal text."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_HASH_BYTES = 16


def salt_of(tenant: str, cache_salt: str) -> str:
    """What a chain starts from for a tenant, and for what it wants to keep apart of its own.

    No two of them start from the same, whatever a tenant is called.
    """
    return repr((tenant, cache_salt)) if cache_salt or tenant.startswith("(") else tenant


def root_hash(salt: str) -> bytes:
    """What a chain starts from; other salts share no hash, so tenants can't probe each other."""
    return blake2b(salt.encode(), digest_size=BLOCK_HASH_BYTES, person=b"penstock-block").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of one full block after all that `parent` stands for.

    Args:
        parent: Hash of the block before, or `root_hash`.
        token_ids: The block's tokens.
    """
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=BLOCK_HASH_BYTES).digest()


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
    parent = root_hash(salt)
    hashes = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return tuple(hashes)
