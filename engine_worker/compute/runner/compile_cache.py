"""The persistent cache of compiled programs: where it lies, and that it never stops a start."""

import hashlib
import logging
import os
import platform
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import jax
import jaxlib.version

from protocol.runtime.container_limits import (
    grant_cores,
    num_schedulable_cores,
    num_usable_cores,
)

_log = logging.getLogger("penstock.compile_cache")
_CACHE_HIT_EVENT: Final = "/jax/compilation_cache/cache_hits"
_CACHE_MISS_EVENT: Final = "/jax/compilation_cache/cache_misses"
_CPU_INFO: Final = Path("/proc/cpuinfo")


def prepare_backend(
    cache_dir: Path | None,
    num_threads: int | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> Path | None:
    """Sets jax up for serving; must run before the first array is made.

    Args:
        cache_dir: Folder of the persistent cache, made if missing; None for no cache. A folder
            that can't be written is logged and left out.
        num_threads: What this process computes with; None is a thread for each core that it may
            use.
        environment: Whose `XLA_FLAGS` decide about the cache's subfolder, and whose `NPROC` says
            how many threads XLA makes for computing; set here where those are fewer than the cores
            that the process may run on.

    Returns:
        The folder of what is kept for this machine and this version of jax; None for no cache.
    """
    grant_cores(num_threads)
    limit_threads(environment)
    # The engine waits for every step, so dispatching from another thread only costs a core.
    _configure("jax_cpu_enable_async_dispatch", False)
    if cache_dir is None:
        return None
    folder = cache_dir / cache_key(environment.get("XLA_FLAGS", ""), cpu_description())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("no compile cache: %s can't be made: %s", folder, error.strerror)
        return None
    if not os.access(folder, os.W_OK):
        _log.warning("no compile cache: %s can't be written", folder)
        return None
    _configure("jax_compilation_cache_dir", str(folder))
    _configure("jax_persistent_cache_min_compile_time_secs", 0.0)
    _configure("jax_persistent_cache_min_entry_size_bytes", -1)
    # A broken entry is a warning and a fresh compile.
    _configure("jax_raise_persistent_cache_errors", False)
    return folder


def limit_threads(environment: MutableMapping[str, str]) -> None:
    """Has XLA make no more threads than there are cores for this process; before jax starts.

    XLA counts the cores that it may run on. It knows nothing of a container's share of their time,
    nor of what this process was granted: it would make a thread for each core of the machine, and
    these would take the time from each other.

    Args:
        environment: Gets `NPROC`, which XLA reads, where it has none and there is such a limit.
    """
    if (num_cores := num_usable_cores()) < num_schedulable_cores():
        environment.setdefault("NPROC", str(num_cores))


def _configure(name: str, value: bool | float | str) -> None:
    jax.config.update(name, value)  # type: ignore[no-untyped-call]


class CacheLookups:
    """What this thread found in the persistent cache, and what it compiled again.

    Only this thread's: others compile at the same time.

    Attributes:
        num_hits: Modules that were loaded; a program is one or more of them.
        num_misses: Modules that were compiled and written to the cache.
    """

    def __init__(self) -> None:
        self._thread_id = threading.get_ident()
        self.num_hits = 0
        self.num_misses = 0

    @property
    def found_all(self) -> bool:
        """Whether something was looked for, and all of it was there."""
        return self.num_hits > 0 and self.num_misses == 0

    def note(self, event: str, **_: str | int) -> None:
        """Listener of jax, called in the thread that compiles."""
        if threading.get_ident() == self._thread_id:
            self.num_hits += event == _CACHE_HIT_EVENT
            self.num_misses += event == _CACHE_MISS_EVENT


@contextmanager
def watch_cache() -> Iterator[CacheLookups]:
    """Counts this thread's look-ups in the persistent cache meanwhile."""
    lookups = CacheLookups()
    jax.monitoring.register_event_listener(lookups.note)
    try:
        yield lookups
    finally:
        jax.monitoring.unregister_event_listener(lookups.note)


def cache_key(xla_flags: str, cpu: str) -> str:
    """Name of the subfolder: an executable is only good for its compiler, its CPU and its flags.

    jax keys its entries too, but an entry of another jaxlib or CPU has been seen to be loaded and
    to crash.
    """
    digest = hashlib.sha256(f"{cpu}\0{xla_flags}".encode()).hexdigest()[:12]
    return f"jax-{jax.__version__}-jaxlib-{jaxlib.version.__version__}-{digest}"


def cpu_description(cpu_info: Path = _CPU_INFO) -> str:
    """Model and instruction sets of this machine's CPU, as far as the system tells."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    described = dict.fromkeys(line for line in lines if line.startswith(wanted))
    return "\n".join((platform.machine(), *described))
