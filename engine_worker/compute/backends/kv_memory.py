"""How much memory the KV cache takes, and how many blocks and tokens that is."""

from collections.abc import Mapping
from pathlib import Path

import jax
import psutil

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.kv_layout import NO_RINGS, StateRings
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.errors import KvMemoryError
from protocol.runtime.container_limits import free_memory_bytes

MEMORY_SHARE = 0.3
"""Share of the memory now available that the cache takes when nothing says otherwise."""
RING_BYTES = 32 * 2**20
"""What the states for draft tokens may take of a sequence, where more than one token is drafted."""
ACCELERATOR_SHARE = 0.85
"""The same on a device with memory of its own, of what weights and programs leave."""


def state_rings(spec: DecoderSpec, *, num_slots: int, max_draft_tokens: int) -> StateRings:
    """How many states of a recurrent decoder are kept beside the blocks.

    A step may be computed again from one token back, and draft tokens may turn out to be wrong:
    each of them needs a state of its own until that is known. Large states leave room for fewer.

    Args:
        spec: The decoder.
        num_slots: Sequences that run at once.
        max_draft_tokens: The longest draft that is wanted; 0 is none.
    """
    if max_draft_tokens and spec.state_bytes:
        max_draft_tokens = min(max_draft_tokens, max(1, RING_BYTES // spec.state_bytes))
    return StateRings(num_slots, num_states=2 + max_draft_tokens)


def size_kv_blocks(
    kv_memory_bytes: int, backend: Backend, block_size: int, rings: StateRings = NO_RINGS
) -> int:
    """How many blocks fit into a given memory, the padding block not counted.

    Args:
        kv_memory_bytes: Memory for the whole cache.
        backend: Whose cache it is.
        block_size: Tokens a block.
        rings: What else is in the cache of a recurrent decoder.

    Returns:
        A number of blocks; below 1 when not even one fits beside the padding block.
    """
    layout = backend.kv_layout(num_blocks=1, block_size=block_size, rings=rings)
    return (kv_memory_bytes - layout.ring_bytes) // layout.block_bytes - 1


def device_memory_stats() -> Mapping[str, int] | None:
    """`Device.memory_stats()` of the default device; None where it has no memory of its own."""
    stats: Mapping[str, int] | None = jax.devices()[0].memory_stats()
    return stats if stats and "bytes_limit" in stats else None


def default_kv_memory_bytes(
    taken_bytes: int = 0, device_stats: Mapping[str, int] | None = None, root: Path = Path("/")
) -> int:
    """Memory for the cache when nothing says otherwise.

    Args:
        taken_bytes: Of weights that are not loaded yet, or of programs that will run on the device.
        device_stats: Of a device with memory of its own; None takes a share of what this process
            may still take of the system's, which in a container is what the container may.
        root: Of the file system that tells a container's limits.
    """
    if device_stats is not None:
        free_bytes = device_stats["bytes_limit"] - device_stats.get("bytes_in_use", 0)
        return int(max(0, free_bytes - taken_bytes) * ACCELERATOR_SHARE)
    free_bytes = free_memory_bytes(psutil.virtual_memory().available, root)
    return _round_down(int(max(0, free_bytes - taken_bytes) * MEMORY_SHARE))


def _round_down(size_bytes: int) -> int:
    """The size with its three leading bits only."""
    # The cache's size is part of every program: a restart with a little more or less memory free
    # gets the same one, and so finds its programs in the compile cache.
    shift = max(0, size_bytes.bit_length() - 3)
    return size_bytes >> shift << shift


def choose_num_blocks(
    backend: Backend,
    *,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    kv_memory_bytes: int,
    rings: StateRings = NO_RINGS,
) -> int:
    """How many blocks a runner gets: what fits, but no more than all its rows could ever fill.

    Args:
        backend: Whose cache it is.
        block_size: Tokens a block.
        max_num_seqs: Rows that run at once.
        max_model_len: The longest row, tokens.
        kv_memory_bytes: Memory for the cache.
        rings: Of a recurrent decoder.

    Raises:
        KvMemoryError: Not even one row of `max_model_len` tokens fits.
    """
    blocks_per_row = -(-max_model_len // block_size)
    num_blocks = size_kv_blocks(kv_memory_bytes, backend, block_size, rings)
    if num_blocks < blocks_per_row:
        needed = backend.kv_layout(
            num_blocks=blocks_per_row, block_size=block_size, rings=rings
        ).size_bytes
        raise KvMemoryError(
            f"the KV cache gets {kv_memory_bytes / 2**20:.1f} MiB, but one request of "
            f"{max_model_len} tokens needs {needed / 2**20:.1f} MiB: "
            f"raise the KV memory or lower the maximum model length{_or_fewer(rings, backend)}"
        )
    return min(num_blocks, max_num_seqs * blocks_per_row)


def _or_fewer(rings: StateRings, backend: Backend) -> str:
    """What else helps where each running request keeps states beside its blocks."""
    if not backend.spec.state_bytes:
        return ""
    ring_mib = rings.num_states * backend.spec.state_bytes / 2**20
    return (
        f", or let fewer than {rings.num_slots} requests run at once, each of which keeps"
        f" {ring_mib:.1f} MiB of states"
    )
