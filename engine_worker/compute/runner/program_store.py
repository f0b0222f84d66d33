"""Keeps compiled programs: the first few before serving starts, the others behind it."""

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from engine_worker.compute.memory.host_memory import trim_heap
from engine_worker.compute.memory.mapped_code import release_after_compiling
from engine_worker.compute.runner.compile_cache import watch_cache
from engine_worker.compute.runner.compiler_threads import CompilerThreads
from engine_worker.core.choice.batch import ProgressCallback
from protocol.runtime.container_limits import num_usable_cores

Key = TypeVar("Key")
_SomeKey = TypeVar("_SomeKey")

_COMPILER_STACK_BYTES: Final = 64 * 2**20
IDLE_S: Final = 1.0
"""After so long without a step, programs are compiled that nobody needs yet."""
NEEDED_USES: Final = 8
"""A program is needed when larger ones had to stand in for it so often since the last compile."""
_log = logging.getLogger("penstock.runner")


class ProgramStore(Generic[Key]):
    """Programs by key; one thread uses them while another may still compile.

    Before `warm_up` a program is compiled when it is first asked for. Afterwards nothing is: who
    asks takes the smallest one that is ready, and the largest ones are compiled first. The others
    follow while no step runs. While steps do, only those are compiled that these steps need, the
    one that is missed most often first, and the compiler gives way to the steps.

    Args:
        compile_program: Compiles the program of a key, in any thread.
        describe: What a program is, for progress and logs.
        compiler_threads: Give way to steps; None where the compiler doesn't compete with them.
        idle_s: See `IDLE_S`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        compile_program: Callable[[Key], Any],
        describe: Callable[[Key], str],
        *,
        compiler_threads: CompilerThreads | None = None,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compile_program = compile_program
        self._describe = describe
        self._compiler_threads = compiler_threads
        self._idle_s = idle_s
        self._clock = clock
        self._programs: dict[Key, Any] = {}
        self._num_misses: dict[object, int] = {}
        self._used_at = clock()
        self._changed = threading.Condition()
        self._is_hurried = False
        self._is_warm = False
        self._behind: threading.Thread | None = None
        self._is_stopping = False
        self.num_compiles = 0

    @property
    def programs(self) -> Mapping[Key, Any]:
        """The compiled programs so far."""
        return self._programs

    def get(self, key: Key) -> Any:
        """The program of a key that `first_ready` gave."""
        if key not in self._programs:
            self._put(key, self._compile_program(key))
        return self._programs[key]

    def first_ready(self, keys: Sequence[_SomeKey]) -> _SomeKey:
        """The first of some keys, in order of preference, whose program may be used now."""
        if not self._is_warm:
            return keys[0]
        self._used_at = self._clock()
        ready: Container[object] = self._programs
        for key in keys:
            if key in ready:
                if key != keys[0]:
                    self._note_miss(keys[0])
                return key
        raise AssertionError("the largest programs are compiled first")

    def warm_up(
        self, first: Sequence[Key], others: Sequence[Key], on_done: ProgressCallback
    ) -> None:
        """Compile the first programs, and begin to compile the others behind.

        Args:
            first: The least that any work needs.
            others: All others, those that are wanted most first.
            on_done: Told the share of `first` that is done, and what was compiled.
        """
        started = time.monotonic()
        missing = [key for key in first if key not in self._programs]
        # The compiler releases the interpreter but leaves cores idle between its parallel parts.
        num_cached = 0
        with self._watched(), _large_stacks(), _pool() as threads:
            futures = {threads.submit(self._compile_watched, key): key for key in missing}
            for num_done, future in enumerate(as_completed(futures), start=1):
                key = futures[future]
                program, is_cached = future.result()
                num_cached += is_cached
                self._put(key, program)
                on_done(num_done / len(missing), f"compiled {self._describe(key)}")
        _log_ready(len(missing), started, num_cached)
        self._used_at = self._clock()
        self._is_warm = True
        with _large_stacks():
            # Not a daemon: the end of the process waits for the compiler, which can't be stopped.
            self._behind = threading.Thread(
                target=self._compile_behind, args=(others,), name="compile"
            )
            self._behind.start()

    def finish_warm_up(self) -> None:
        """Compile what is missing without regard to anybody, and wait until that is done."""
        self._is_hurried = True
        self._join()

    def stop(self) -> None:
        """End compiling behind after the program in hand, which nothing can stop; wait for it."""
        self._is_stopping = True
        self._join()

    def _join(self) -> None:
        with self._changed:
            self._changed.notify()
        if self._behind is not None:
            self._behind.join()

    def _note_miss(self, key: object) -> None:
        """A larger program stands in for one that isn't ready."""
        num_misses = self._num_misses[key] = self._num_misses.get(key, 0) + 1
        if num_misses == NEEDED_USES:
            with self._changed:
                self._changed.notify()

    def _compile_behind(self, keys: Iterable[Key]) -> None:
        started = time.monotonic()
        num_ready = num_cached = 0
        missing = [key for key in keys if key not in self._programs]
        while missing:
            key = self._next(missing)
            if key is None:
                return
            missing.remove(key)
            try:
                with self._watched():
                    program, is_cached = self._compile_watched(key)
            except BaseException:  # noqa: BLE001 - larger programs stand in for it
                _log.exception("%s could not be compiled", self._describe(key))
                continue
            self._put(key, program)
            num_ready += 1
            num_cached += is_cached
            # After each: while there are requests, the last program may never be compiled.
            trim_heap()
        release_after_compiling()
        _log_ready(num_ready, started, num_cached)

    def _next(self, missing: Sequence[Key]) -> Key | None:
        """What is to be compiled now, once that is something; None at the end of the process."""
        with self._changed:
            while not self._is_stopping and threading.main_thread().is_alive():
                key = max(missing, key=lambda key: self._num_misses.get(key, 0))
                if self._num_misses.get(key, 0) >= NEEDED_USES:
                    # What is missed from now on says what is needed after it.
                    self._num_misses = {}
                    return key
                idle_s = self._clock() - self._used_at
                if self._is_hurried or idle_s >= self._idle_s:
                    return missing[0]
                self._changed.wait(min(self._idle_s - idle_s, IDLE_S))
        return None

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """The threads that compile meanwhile give way from the next program on."""
        if self._compiler_threads is None:
            yield
            return
        used_at = self._used_at
        with self._compiler_threads.watch() as found:
            yield
        if self._used_at == used_at:  # else threads of a step may be among them
            self._compiler_threads.give_way(found)

    def _compile_watched(self, key: Key) -> tuple[Any, bool]:
        """The program of a key, and whether all of it came from the persistent cache."""
        with watch_cache() as lookups:
            program = self._compile_program(key)
        return program, lookups.found_all

    def _put(self, key: Key, program: Any) -> None:
        self._programs[key] = program
        self.num_compiles += 1


def _log_ready(num_programs: int, started: float, num_cached: int) -> None:
    _log.info(
        "%d programs ready in %.1f s, %d of them from the compile cache",
        num_programs,
        time.monotonic() - started,
        num_cached,
    )


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, num_usable_cores()), "compile")


@contextmanager
def _large_stacks() -> Iterator[None]:
    """Threads started meanwhile: deep models overflow the compiler's stack at the usual 8 MiB."""
    usual_stack_bytes = threading.stack_size(_COMPILER_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(usual_stack_bytes)
