"""Threads of batches alone: nothing else of the server waits for one that they take."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, ParamSpec, TypeVar

NUM_THREADS: Final = 4

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


class BatchThreads:
    """Reads inputs, and waits for the disk.

    An input may take long to read, and many batches may be read or written at a time. In the
    threads that all others share, a settlement on its way to the disk would wait behind them.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, "batch")

    async def run(
        self,
        work: Callable[Arguments, ResultT],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> ResultT:
        """Do something in one of them, as `asyncio.to_thread` does."""
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: context.run(work, *args, **kwargs)
        )

    def close(self) -> None:
        """Let them end with what they do; idempotent."""
        self._pool.shutdown(wait=False)
