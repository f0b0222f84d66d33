"""The persistent compile cache: where it lies, that it is used, and that it never stops a start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_worker.compute.runner import compile_cache
from engine_worker.compute.runner.compile_cache import cache_key, cpu_description, limit_threads

PROGRAM = """
import sys, warnings
from pathlib import Path
import jax
from engine_worker.compute.runner.compile_cache import prepare_backend, watch_cache
prepare_backend(Path(sys.argv[1]))
warnings.simplefilter("ignore")
with watch_cache() as lookups:
    print(float(jax.jit(lambda x: x * 2 + 1)(20.5)))
print(lookups.num_hits)
"""


def run_program(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.split()


def test_a_second_process_loads_what_the_first_compiled_and_survives_broken_entries(
    tmp_path: Path,
) -> None:
    assert run_program(tmp_path) == ["42.0", "0"]
    value, num_hits = run_program(tmp_path)
    assert (value, int(num_hits) >= 1) == ("42.0", True)
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert run_program(tmp_path)[0] == "42.0"


def test_a_folder_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert run_program(blocker) == ["42.0", "0"]


@pytest.mark.parametrize(
    ("num_cores", "set_before", "expected"), [(2, None, "2"), (64, None, None), (2, "5", "5")]
)
def test_a_containers_share_of_cores_is_how_many_threads_compute(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, set_before: str | None, expected: str | None
) -> None:
    """A thread for each core of the machine took the container's share from the others."""
    monkeypatch.setattr(compile_cache, "num_usable_cores", lambda: num_cores)
    monkeypatch.setattr(compile_cache, "num_schedulable_cores", lambda: 64)
    environment = {} if set_before is None else {"NPROC": set_before}
    limit_threads(environment)
    assert environment.get("NPROC") == expected


# The next test shows the same of an engine's own way to tell it.
@pytest.mark.long
def test_xla_makes_as_many_threads_as_it_is_told() -> None:
    def num_threads(nproc: str) -> int:
        script = (
            "import jax, pathlib; jax.numpy.ones(3).block_until_ready();"
            "print(sum('XLAEigen' in (task / 'comm').read_text()"
            " for task in pathlib.Path('/proc/self/task').iterdir()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"NPROC": nproc},
        )
        return int(done.stdout)

    assert num_threads("3") == 3


def test_an_engine_computes_with_as_many_threads_as_it_was_given() -> None:
    script = (
        "import jax, pathlib;"
        "from engine_worker.compute.runner.compile_cache import prepare_backend;"
        "from engine_worker.compute.backends.cpu_native.library import load;"
        "prepare_backend(None, 1); jax.numpy.ones(3).block_until_ready();"
        "print(load().num_threads, sum('XLAEigen' in (task / 'comm').read_text()"
        " for task in pathlib.Path('/proc/self/task').iterdir()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.split() == ["1", "1"]


def test_the_key_changes_with_cpu_and_flags() -> None:
    keys = {cache_key("", "a"), cache_key("--f", "a"), cache_key("", "b"), cache_key("", "a")}
    assert len(keys) == 3


def test_the_cpu_is_described_by_model_and_instruction_sets(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: X\nflags\t: avx2\ncpu MHz\t: 1\n" * 2)
    assert cpu_description(info).splitlines()[1:] == ["model name\t: X", "flags\t: avx2"]
    info.write_text("model name\t: X\nflags\t: avx2\ncpu MHz\t: 2\n")
    assert cpu_description(info).splitlines()[1:] == ["model name\t: X", "flags\t: avx2"]


def test_a_system_without_cpu_info_is_described_too(tmp_path: Path) -> None:
    assert cpu_description(tmp_path / "missing")


@pytest.mark.parametrize("xla_flags", ["", "--xla_cpu_max_isa=AVX2 --odd/../path"])
def test_the_key_is_a_plain_folder_name(xla_flags: str) -> None:
    assert "/" not in cache_key(xla_flags, "cpu")
