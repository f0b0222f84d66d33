"""A library of native kernels that is missing, broken or of another version is refused by name."""

import _ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native import library, packing
from engine_worker.compute.backends.cpu_native.library import Library, load
from engine_worker.errors import NativeUnavailableError


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match="not built.*C\\+\\+ compiler"):
        load(path=tmp_path / "none.so")


def with_digest(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_a_library_cut_short_or_changed_is_refused(kernels: Library, tmp_path: Path) -> None:
    """Before the system sees it, which crashes the process over it."""
    whole = library.LIBRARY_PATH.read_bytes()
    path = tmp_path / "damaged.so"
    for content in (b"", whole[:5000], whole[:-1], whole[:100_000] + b"?" + whole[100_001:]):
        path.write_bytes(content)
        with pytest.raises(NativeUnavailableError, match="damaged.so are damaged: install"):
            load(path=path)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_bytes(with_digest(b"no library"))
    with pytest.raises(NativeUnavailableError, match="can't be loaded.*install Penstock again"):
        load(path=path)


def test_another_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.so"
    path.write_bytes(with_digest(Path(_ctypes.__file__).read_bytes()))
    with pytest.raises(NativeUnavailableError, match="penstock_interface_version"):
        load(path=path)


def test_a_library_of_another_version_is_refused(
    kernels: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "older.so"
    shutil.copy(library.LIBRARY_PATH, path)
    version = library.INTERFACE_VERSION
    monkeypatch.setattr(library, "INTERFACE_VERSION", 99)
    with pytest.raises(NativeUnavailableError, match=f"of version {version} instead of 99"):
        load(path=path)


def test_a_level_that_is_not_there_is_refused_and_changes_nothing(kernels: Library) -> None:
    level = kernels.level
    with pytest.raises(NativeUnavailableError, match="no level sse9.*compiled are"):
        kernels.choose_level("sse9")
    assert kernels.level == level


def test_the_library_is_loaded_once(kernels: Library) -> None:
    again = load(num_threads=7, level="generic")
    assert again.handle is kernels.handle
    assert again.num_threads == kernels.num_threads
    assert kernels.level == "generic"


@pytest.mark.parametrize("weight_type", packing.WEIGHT_TYPES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(
    kernels: Library, weight_type: str, number: float
) -> None:
    values = np.ones((40, 50), np.float32)
    values[37, 41] = number
    with pytest.raises(ValueError, match=f"not a finite number in {weight_type}"):
        packing.pack(values, weight_type, "linear")


def test_a_weight_too_large_for_bfloat16_is_refused(kernels: Library) -> None:
    values = np.full((1, 2), np.finfo(np.float32).max, np.float32)
    packing.pack(values, "float32", "linear")
    with pytest.raises(ValueError, match="bfloat16"):
        packing.pack(values, "bfloat16", "linear")


def test_weights_of_another_type_or_shape_are_refused(kernels: Library) -> None:
    with pytest.raises(ValueError, match="float32 or bfloat16, not float64"):
        packing.pack(np.ones((2, 2)), "bfloat16", "linear")
    with pytest.raises(ValueError, match="no weight type 'int3'"):
        packing.pack(np.ones((2, 2), np.float32), "int3", "linear")
    with pytest.raises(ValueError, match="32, 64 or 128, not 48"):
        packing.pack(np.ones((2, 2), np.float32), "int4", "linear", group_size=48)
    with pytest.raises(ValueError, match="can't be packed"):
        packing.pack(np.ones((3, 2), np.float32), "int8", "gate_up")


@pytest.mark.parametrize("weight_type", packing.WEIGHT_TYPES)
@pytest.mark.parametrize("kind", packing.MatrixKind)
def test_packing_keeps_every_weight_within_its_types_error(
    kernels: Library, weight_type: str, kind: str
) -> None:
    values = np.random.default_rng(0).standard_normal((70, 90)).astype(np.float32)
    values[3] = 0  # an output without weights has no scale
    (packed,) = packing.pack(values, weight_type, kind)
    (shape, dtype), *_ = packing.packed_parts((70, 90), weight_type, kind)
    assert packed.shape == shape
    assert packed.dtype == dtype
    assert packed.ctypes.data % 64 == 0
    error = np.abs(packing.unpack(packed, (70, 90), weight_type, kind) - values)
    assert not error[3].any()
    largest = np.abs(values).max(axis=1, keepdims=True)
    limits = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.51 / 127, "int4": 0.17}
    assert (error <= limits[weight_type] * largest).all()


_WITH_A_SMALL_SIGNAL_STACK = """
import ctypes, logging

class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

logging.basicConfig(format="%(message)s")
libc = ctypes.CDLL(None)
memory = ctypes.create_string_buffer(6000)  # AVX-512's registers fit, AMX's 8 KiB don't
stack = Stack(ctypes.addressof(memory), 0, 6000)
assert libc.sigaltstack(ctypes.byref(stack), None) == 0
from engine_worker.compute.backends.cpu_native.library import load
print(load(num_threads=1).level)
"""


def test_where_the_system_refuses_amx_the_next_level_computes_and_the_log_says_so(
    kernels: Library,
) -> None:
    """Linux refuses a process with a signal stack that the registers wouldn't fit on."""
    if kernels.level != "amx":
        pytest.skip("this processor, its system or the compiler has no AMX")
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_SMALL_SIGNAL_STACK],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[6],
    )  # fmt: skip
    assert done.stdout.strip() == kernels.levels[1]
    assert "though this processor has AMX: the system doesn't let this process" in done.stderr


@pytest.mark.parametrize(
    ("levels", "level", "flags", "message"),
    [
        (("amx", "avx2"), "amx", {"amx_tile", "amx_bf16", "amx_int8"}, None),
        (("avx2",), "avx2", {"amx_tile", "amx_int8"}, None),
        (("amx", "avx2"), "avx2", {"amx_tile", "amx_bf16", "amx_int8"}, "system doesn't let"),
        (("avx2",), "avx2", {"amx_tile", "amx_bf16", "amx_int8"}, "compiler that built them"),
    ],
)
def test_the_log_says_why_a_processors_amx_is_not_used(
    levels: tuple[str, ...],
    level: str,
    flags: set[str],
    message: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = SimpleNamespace(penstock_level=level.encode)
    library._tell_why_no_amx(Library(cast("Any", handle), levels, 1), frozenset(flags))
    assert bool(caplog.text) == (message is not None)
    assert (message or "") in caplog.text


_DIGEST_OF_A_STEP = """
import hashlib, sys
import jax.numpy as jnp
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import AttentionConfig, MlpConfig
from engine_worker.compute.backends.cpu_native.library import load
from tests.fakes.block_oracle import Problem, Row, StepShape

assert load(num_threads=int(sys.argv[1])).num_threads == int(sys.argv[1])
problem = Problem(StepShape((Row(0, 90), Row(300, 1)), 32), 64)
attention = problem.attention(AttentionConfig(6, 3, 32, 0.2, 1e-5), 16)
mlp = problem.mlp(MlpConfig(300, 1e-5))
blocks = [attention.block(0), mlp.block()]
x, _ = calls.run_blocks(jnp.asarray(problem.x), problem.step, attention.ropes, blocks)
print(hashlib.sha256(bytes(x)).hexdigest())
"""


_CALLS_BESIDE_XLA = """
import threading
import jax, numpy as np
import jax.numpy as jnp
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import AttentionConfig, MlpConfig
from engine_worker.compute.backends.cpu_native.library import load
from tests.fakes.block_oracle import Problem, Row, StepShape

assert load(num_threads=4).num_threads == 4
problem = Problem(StepShape((Row(0, 90), Row(300, 1)), 32), 64)
attention = problem.attention(AttentionConfig(6, 3, 32, 0.2, 1e-5), 16)
blocks = [attention.block(0), problem.mlp(MlpConfig(300, 1e-5)).block()]
square = jnp.asarray(np.random.default_rng(0).standard_normal((600, 600)), jnp.float32)

@jax.jit
def both(x, square):
    # XLA's own threads before, beside and after the call: nothing orders the second product.
    y, _ = calls.run_blocks(x + (square @ square)[0, 0] * 0, problem.step, attention.ropes, blocks)
    return y, (square @ square) @ square, (square * y[0, 0]) @ square

x = jnp.asarray(problem.x)
expected = [bytes(one) for one in both(x, square)]
same = []

def call():
    for _ in range(25):
        same.append([bytes(one) for one in both(x, square)] == expected)

callers = [threading.Thread(target=call) for _ in range(4)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print(all(same), len(same))
"""


def test_calls_beside_programs_of_xla_wait_for_nobody_for_ever(kernels: Library) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLS_BESIDE_XLA],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[6],
        env=os.environ | {"NPROC": "4"},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "100"]


def test_a_step_has_the_same_bits_with_any_number_of_threads(kernels: Library) -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST_OF_A_STEP, num_threads],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[6],
        ).stdout
        for num_threads in ("1", "5")
    }  # fmt: skip
    assert len(digests) == 1
