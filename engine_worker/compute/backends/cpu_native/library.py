"""Finds, checks and loads the shared library with the native CPU kernels.

    library = load()                 # raises NativeUnavailableError with a reason for the log
    library.level, library.num_threads

The library is built with the package (`setup.py`) and holds the kernels for several instruction
levels, of which it takes the best that the processor has. docs/kernels.md describes them.
"""

import ctypes
import hashlib
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax.ffi

from engine_worker.compute.models.dtype import read_cpu_flags
from engine_worker.errors import NativeUnavailableError
from protocol.runtime.container_limits import num_usable_cores

INTERFACE_VERSION: Final = 12
"""Of the library's calls, attributes and packed layouts: `kInterfaceVersion` of `library.cc`."""
LIBRARY_PATH: Final = Path(__file__).with_name("libpenstock_kernels.so")
TARGETS: Final = (
    "penstock_blocks",
    "penstock_experts",
    "penstock_latent",
    "penstock_by_head",
    "penstock_head",
    "penstock_likeliest",
    "penstock_embedding",
    "penstock_unwritten",
    "penstock_recurrent",
)
_AMX: Final = "amx"
_AMX_FLAGS: Final = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
_log = logging.getLogger("penstock.engine.kernels")
_lock = threading.Lock()
_loaded: dict[Path, ctypes.CDLL] = {}
_num_threads: dict[Path, int] = {}


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded library.

    Attributes:
        handle: For `packing`.
        levels: Instruction levels that it was compiled for, the best first.
        num_threads: Threads of a call, the caller's among them.
    """

    handle: ctypes.CDLL
    levels: tuple[str, ...]
    num_threads: int

    @property
    def level(self) -> str:
        """The instruction level that calls use."""
        name: bytes = self.handle.penstock_level()
        return name.decode()

    def choose_level(self, level: str) -> None:
        """Makes all later calls of this process use a level.

        Raises:
            NativeUnavailableError: It was not compiled, or the processor lacks it.
        """
        if not self.handle.penstock_choose_level(level.encode()):
            raise NativeUnavailableError(
                f"the native kernels have no level {level} for this processor; "
                f"compiled are {', '.join(self.levels)}"
            )


def load(
    *, num_threads: int | None = None, level: str | None = None, path: Path = LIBRARY_PATH
) -> Library:
    """Loads the library once and registers its targets with jax.

    Args:
        num_threads: Threads of a call; None takes the cores that are this process's, by its CPU
            set, its control group and its settings. Only the first load of a process sets it.
        level: The instruction level; None is the best one.
        path: Of the library.

    Raises:
        NativeUnavailableError: With the reason, in one line.
    """
    with _lock:
        handle = _loaded.get(path)
        if handle is None:
            handle = _open(path)
            for target in TARGETS:
                capsule = jax.ffi.pycapsule(  # type: ignore[no-untyped-call]
                    getattr(handle, target)
                )
                jax.ffi.register_ffi_target(target, capsule, platform="cpu")
            _loaded[path] = handle
        if path not in _num_threads:
            wanted = num_threads or num_usable_cores()
            _num_threads[path] = handle.penstock_start_threads(wanted)
            _tell_why_no_amx(_library_of(handle, _num_threads[path]), read_cpu_flags())
        threads = _num_threads[path]
    library = _library_of(handle, threads)
    if level is not None:
        library.choose_level(level)
    return library


def _library_of(handle: ctypes.CDLL, num_threads: int) -> Library:
    return Library(handle, tuple(handle.penstock_compiled_levels().decode().split()), num_threads)


def _tell_why_no_amx(library: Library, cpu_flags: frozenset[str]) -> None:
    """Logs what a processor with AMX computes with instead, and why."""
    if library.level == _AMX or not cpu_flags >= _AMX_FLAGS:
        return
    why = "the compiler that built them doesn't know it"
    if _AMX in library.levels:
        why = "the system doesn't let this process use it"
    _log.warning(
        "the native kernels compute with %s, though this processor has AMX: %s", library.level, why
    )


def _open(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise NativeUnavailableError(
            "the native kernels were not built: install Penstock where there is a C++ compiler"
        )
    if not _is_whole(path):
        raise NativeUnavailableError(
            f"the native kernels in {path} are damaged: install Penstock again"
        )
    try:
        handle = ctypes.CDLL(str(path))
        version = handle.penstock_interface_version()
        if version == INTERFACE_VERSION:
            _declare(handle)
    except (OSError, AttributeError) as error:
        raise NativeUnavailableError(
            f"the native kernels can't be loaded: {error}; install Penstock again"
        ) from error
    if version != INTERFACE_VERSION:
        raise NativeUnavailableError(
            f"the native kernels are of version {version} instead of {INTERFACE_VERSION}: "
            "install Penstock again"
        )
    return handle


def _is_whole(path: Path) -> bool:
    """Whether the file is what was built: its digest follows it, see setup.py.

    The system would crash the process over a library that was cut short.
    """
    content = path.read_bytes()
    size = len(content) - hashlib.sha256().digest_size
    return size > 0 and hashlib.sha256(content[:size]).digest() == content[size:]


def _declare(handle: ctypes.CDLL) -> None:
    """Types of all functions; an AttributeError names one that is missing."""
    number, text, pointer, size = ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "penstock_compiled_levels": (text, ()),
        "penstock_level": (text, ()),
        "penstock_choose_level": (number, (text,)),
        "penstock_start_threads": (number, (number,)),
        "penstock_pack": (
            number,
            (pointer, number, size, size, number, number, size, pointer, size),
        ),
        "penstock_pack_blocks": (
            number,
            (*[pointer] * 5, size, size, number, number, size, size, number, pointer, size),
        ),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    for target in TARGETS:
        getattr(handle, target)
