"""Finds the blocks of a request that are computed already, and who is computing the others."""

from collections.abc import Callable

from engine_worker.core.choice.request import Request
from engine_worker.core.scheduling.block_hashes import block_hash, root_hash
from engine_worker.core.scheduling.block_pool import BlockPool


class PrefixCache:
    """Names the full blocks of requests in the pool, and shares them with whoever needs the same.

    Only full blocks are named, and nobody writes to a block that has a name. At least the last
    token of a request is always computed, because the next one is sampled from it. A request whose
    next block is being computed by another one waits for that, so that the choices of one request,
    and requests that arrive together, compute a common prompt once.

    Args:
        pool: Holds the blocks and their names.
        wake: Called with a request when the block that it waits for is there, or never will be.
    """

    def __init__(self, pool: BlockPool, wake: Callable[[Request], None]) -> None:
        self._pool = pool
        self._wake = wake
        self._computing: dict[bytes, Request] = {}
        self._parked: dict[bytes, dict[Request, None]] = {}
        self.num_parked = 0

    def find(self, request: Request) -> list[int]:
        """The blocks, from the first on, that need not be computed; nothing is taken yet."""
        found: list[int] = []
        if request.reads_cache:
            for content in self._usable_hashes(request):
                block_id = self._pool.find(content)
                if block_id is None:
                    break
                found.append(block_id)
        return found

    def awaited(self, request: Request, num_found: int) -> bytes | None:
        """The last block that somebody else is computing right after the blocks that were found.

        None when nobody computes the next one: then the request has to.
        """
        last = None
        if request.reads_cache:
            for content in self._usable_hashes(request)[num_found:]:
                if content not in self._computing:
                    break
                last = content
        return last

    def park(self, request: Request, content: bytes) -> None:
        """Let a request wait for a block that somebody is computing."""
        assert content in self._computing
        self._parked.setdefault(content, {})[request] = None
        request.awaited_block = content
        self.num_parked += 1

    def unpark(self, request: Request) -> None:
        """A request that waits for a block has ended."""
        content = request.awaited_block
        assert content is not None
        waiters = self._parked[content]
        del waiters[request]
        if not waiters:
            del self._parked[content]
        request.awaited_block = None
        self.num_parked -= 1

    def parked(self) -> tuple[Request, ...]:
        """Everybody who waits for a block."""
        return tuple(request for waiters in self._parked.values() for request in waiters)

    def begin(self, request: Request, num_found: int) -> None:
        """A request starts to compute what follows the blocks that were found for it."""
        request.num_named_blocks = num_found
        num_full = request.num_tokens // self._pool.block_size
        for content in self._hashes(request, num_full)[num_found:]:
            if self._pool.find(content) is None:
                self._computing.setdefault(content, request)

    def commit(self, request: Request) -> None:
        """Name the blocks that the request has filled up to `num_computed_tokens`."""
        first = request.num_named_blocks
        end = request.num_computed_tokens // self._pool.block_size
        if first >= end:
            return
        hashes = self._hashes(request, end)
        for index in range(first, end):
            self._pool.register(request.block_ids[index], hashes[index])
            self._let_go(request, hashes[index])
        request.num_named_blocks = end

    def end(self, request: Request) -> None:
        """A request computes nothing any more; called while it still has its blocks."""
        for content in request.block_hashes[request.num_named_blocks :]:
            self._let_go(request, content)
        request.num_named_blocks = 0

    def _let_go(self, request: Request, content: bytes) -> None:
        if self._computing.get(content) is not request:
            return
        del self._computing[content]
        for waiter in self._parked.pop(content, ()):
            waiter.awaited_block = None
            self.num_parked -= 1
            self._wake(waiter)

    def _usable_hashes(self, request: Request) -> list[bytes]:
        return self._hashes(request, (request.num_tokens - 1) // self._pool.block_size)

    def _hashes(self, request: Request, num_blocks: int) -> list[bytes]:
        """The first hashes of a request; computed once, as far as they were asked for."""
        size = self._pool.block_size
        hashes = request.block_hashes
        if len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else root_hash(request.cache_salt)
            for start in range(len(hashes) * size, num_blocks * size, size):
                parent = block_hash(parent, request.token_ids(start, start + size))
                hashes.append(parent)
        return hashes if len(hashes) == num_blocks else hashes[:num_blocks]
