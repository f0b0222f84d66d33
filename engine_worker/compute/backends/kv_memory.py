"""How much memory the KV cache takes, and how many blocks and tokens that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.kv_layout import NO_RINGS, KvLayout, StateRings
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.core.choice.cache_group import most_window_blocks
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


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What the blocks of a decoder's cache are, before it is known how many there are.

    Attributes:
        backend: Whose cache it is.
        block_size: Tokens a block.
        num_step_tokens: The most tokens of a request in one step: behind a window blocks are kept
            for these, and for the window before them.
        rings: What else is in the cache of a recurrent decoder.
    """

    backend: Backend
    block_size: int
    num_step_tokens: int
    rings: StateRings = NO_RINGS

    def layout(self, num_blocks: int | Sequence[int]) -> KvLayout:
        """The layout with so many blocks in each cache group; one number is for each of them."""
        return self.backend.kv_layout(
            num_blocks=num_blocks, block_size=self.block_size, rings=self.rings
        )

    @property
    def reaches(self) -> tuple[int | None, ...]:
        """Of each cache group, see `CacheGroup`."""
        return self.backend.layer_groups.reaches

    def blocks_of_request(self, num_tokens: int) -> tuple[int, ...]:
        """For each cache group the most blocks that a request of so many tokens has at a time."""
        num_blocks = -(-num_tokens // self.block_size)
        return tuple(
            num_blocks
            if reach is None
            else min(num_blocks, most_window_blocks(reach, self.num_step_tokens, self.block_size))
            for reach in self.reaches
        )

    def most_blocks(self, max_num_seqs: int, max_model_len: int) -> tuple[int, ...]:
        """For each cache group what all requests that run at a time could ever fill.

        Behind a window as much again, so that what they free can wait for others to begin with it.
        One request alone may be a question that is scored, which fills a block beside its tokens'.
        """
        whole = -(-max_model_len // self.block_size)
        per_request = self.blocks_of_request(max_model_len)
        return tuple(
            max(num + 1, max_num_seqs * (num if reach is None else min(2 * num, whole)))
            for num, reach in zip(per_request, self.reaches, strict=True)
        )

    def room_bytes(self, kv_memory_bytes: int) -> int:
        """What is left for blocks of a given memory, beside rings and padding blocks."""
        return kv_memory_bytes - self.layout(0).size_bytes

    def longest_request(self, kv_memory_bytes: int, longest: int) -> int:
        """The most blocks of a request, up to those of `longest` tokens, that a memory holds.

        Blocks of tokens, whether or not those behind a window are freed; 0 when it holds none.
        """
        room = self.room_bytes(kv_memory_bytes)
        block_bytes = self.layout(0).block_bytes
        low, high = 0, -(-longest // self.block_size)
        while low < high:
            middle = (low + high + 1) // 2
            if _dot(self.blocks_of_request(middle * self.block_size), block_bytes) <= room:
                low = middle
            else:
                high = middle - 1
        return low


def _dot(numbers: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(number * size for number, size in zip(numbers, sizes, strict=True))


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
    shape: CacheShape, *, max_num_seqs: int, max_model_len: int, kv_memory_bytes: int
) -> tuple[int, ...]:
    """How many blocks of each cache group a runner gets: what fits, but no more than is of use.

    Where some layers see all tokens and others a window, memory is divided so that requests of all
    lengths do well: long ones would want w blocks behind windows for every n others, short ones as
    many of these as of those; it is the square root of w * n for every n.

    Args:
        shape: Of the cache.
        max_num_seqs: Rows that run at once.
        max_model_len: The longest row, tokens.
        kv_memory_bytes: Memory for the cache.

    Raises:
        KvMemoryError: Not even one row of `max_model_len` tokens fits.
    """
    least = shape.blocks_of_request(max_model_len)
    most = shape.most_blocks(max_num_seqs, max_model_len)
    block_bytes = shape.layout(least).block_bytes
    room = shape.room_bytes(kv_memory_bytes)
    if room < _dot(least, block_bytes):
        rings, backend = shape.rings, shape.backend
        raise KvMemoryError(
            f"the KV cache gets {kv_memory_bytes / 2**20:.1f} MiB, but one request of "
            f"{max_model_len} tokens needs {shape.layout(least).size_bytes / 2**20:.1f} MiB: "
            "raise the KV memory or lower the maximum model length"
            f"{or_fewer_requests(rings, backend)}"
        )
    if len(least) == 1:
        return (min(room // block_bytes[0], most[0]),)
    share = math.sqrt(least[1] / least[0])
    num_whole = int(room / (block_bytes[0] + share * block_bytes[1]))

    def fitting(group: int, num_others: int) -> int:
        left = room - num_others * block_bytes[1 - group]
        return max(least[group], min(left // block_bytes[group], most[group]))

    num_windows = max(least[1], min(int(share * num_whole), most[1]))
    num_whole = fitting(0, num_windows)
    return num_whole, fitting(1, num_whole)


def num_kv_tokens(shape: CacheShape, num_blocks: Sequence[int], max_model_len: int) -> int:
    """How many tokens requests may have together: those of the longest ones, or of shorter ones.

    Args:
        shape: Of the cache.
        num_blocks: Of each cache group.
        max_model_len: The longest request, tokens.
    """
    per_request = shape.blocks_of_request(max_model_len)
    return min(
        max(num * shape.block_size, num // each * max_model_len)
        for num, each in zip(num_blocks, per_request, strict=True)
    )


def or_fewer_requests(rings: StateRings, backend: Backend) -> str:
    """What else helps where each running request keeps states beside its blocks."""
    if not backend.spec.state_bytes or rings.num_slots < 2:
        return ""
    ring_mib = rings.num_states * backend.spec.state_bytes / 2**20
    return (
        f", or let fewer than {rings.num_slots} requests run at once, each of which keeps"
        f" {ring_mib:.1f} MiB of states"
    )
