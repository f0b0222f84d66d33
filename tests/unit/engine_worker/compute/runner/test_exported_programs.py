"""Programs from files: the same as traced ones, found by all that they depend on, and no others."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.runner.exported_programs import (
    ExportedPrograms,
    UnknownPartError,
    describe_parts,
)
from engine_worker.compute.runner.full_sampler import FullSampler
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.program_folder import ABANDONED_S, SUFFIX
from engine_worker.compute.runner.programs import StepProgram
from engine_worker.core.choice.batch import RowSampling
from engine_worker.loading.decoder import choose_program_folder
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.runner_requests import GREEDY, RunnerRequest, generate
from tests.fakes.tiny_decoder import tiny_hybrid_spec, tiny_spec, tiny_weights


class State(NamedTuple):
    total: jax.Array
    unused: jax.Array | None


class Counted:
    """A program that knows how often it was traced."""

    def __init__(self, factor: int = 2) -> None:
        self.num_traced = 0
        self._factor = factor

    def __call__(
        self, weights: tuple[jax.Array, ...], state: State, x: jax.Array
    ) -> tuple[dict[str, jax.Array], State]:
        self.num_traced += 1
        y = x * weights[1] * self._factor
        return {"y": y}, state._replace(total=state.total + y.sum())


def arguments() -> tuple[Any, ...]:
    weights = (jnp.full(3, 7.0), jnp.full(3, 2.0))
    return weights, State(jnp.zeros(()), None), np.arange(3, dtype=np.float32)


OUTPUTS = ({"y": 0}, State(0, None))  # type: ignore[arg-type]


def run(programs: ExportedPrograms, program: Counted) -> tuple[Any, tuple[Any, ...]]:
    """What a program makes of its arguments, and these."""
    args = arguments()
    compiled = programs.lower("counted", program, args, OUTPUTS, donated=(1,)).compile()
    return compiled(*args), args


def check(programs: ExportedPrograms, program: Counted, num_traced: int, factor: int = 2) -> None:
    (output, state), args = run(programs, program)
    np.testing.assert_array_equal(output["y"], np.arange(3) * 2.0 * factor)
    assert float(state.total) == 6.0 * factor
    assert state.unused is None
    assert args[1].total.is_deleted(), "it is donated"
    assert program.num_traced == num_traced


def test_a_later_process_does_not_trace_what_an_earlier_one_has_traced(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    check(ExportedPrograms(folder, ("a",), ()), Counted(), num_traced=1)
    # It would be seen in the result if it were traced.
    check(ExportedPrograms(folder, ("a",), ()), Counted(5), num_traced=0)
    assert [path.suffix for path in folder.iterdir()] == [SUFFIX]


def test_another_part_another_shape_or_another_name_is_traced(tmp_path: Path) -> None:
    check(ExportedPrograms(tmp_path, ("a",), ()), Counted(), num_traced=1)
    check(ExportedPrograms(tmp_path, ("b",), ()), Counted(5), num_traced=1, factor=5)
    programs, program = ExportedPrograms(tmp_path, ("a",), ()), Counted(5)
    weights, state, _ = arguments()
    longer = (weights, state, np.zeros((2, 3), np.float32))
    programs.lower("counted", program, longer, OUTPUTS, donated=(1,))
    programs.lower("other", program, arguments(), OUTPUTS, donated=(1,))
    assert program.num_traced == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
        lambda content: b"",
    ],
)
def test_a_broken_file_is_traced_again_and_replaced_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[bytes], bytes]
) -> None:
    check(ExportedPrograms(tmp_path, (), ()), Counted(), num_traced=1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(spoil(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        check(ExportedPrograms(tmp_path, (), ()), Counted(), num_traced=1)
    assert str(file) in caplog.text
    check(ExportedPrograms(tmp_path, (), ()), Counted(), num_traced=1)
    check(ExportedPrograms(tmp_path, (), ()), Counted(5), num_traced=0)


def test_a_folder_that_cannot_be_written_to_costs_a_trace_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    check(ExportedPrograms(blocker / "programs", (), ()), Counted(), num_traced=1)
    assert "can't be kept" in caplog.text


def test_what_cannot_be_described_is_traced_every_time(tmp_path: Path) -> None:
    for _ in range(2):
        check(ExportedPrograms(tmp_path, (object(),), ()), Counted(), num_traced=1)
    assert not list(tmp_path.iterdir())


def test_programs_used_least_recently_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every new code, setting and size of the cache left its files for ever."""
    monkeypatch.setattr("engine_worker.compute.runner.program_folder.MAX_PROGRAMS", 3)
    for part in ("used again", "oldest", "older"):
        check(ExportedPrograms(tmp_path, (part,), ()), Counted(), num_traced=1)
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    check(ExportedPrograms(tmp_path, ("used again",), ()), Counted(), num_traced=0)
    check(ExportedPrograms(tmp_path, ("newest",), ()), Counted(), num_traced=1)
    assert len(list(tmp_path.iterdir())) == 3
    for part in ("newest", "used again", "older"):
        check(ExportedPrograms(tmp_path, (part,), ()), Counted(), num_traced=0)
    check(ExportedPrograms(tmp_path, ("oldest",), ()), Counted(), num_traced=1)


def test_what_killed_writers_left_is_removed_and_what_others_write_now_is_not(
    tmp_path: Path,
) -> None:
    abandoned, in_work = tmp_path / "step-1.a.tmp", tmp_path / "step-1.b.tmp"
    for path in (abandoned, in_work):
        path.write_bytes(b"half")
    long_ago = in_work.stat().st_mtime - ABANDONED_S - 60
    os.utime(abandoned, (long_ago, long_ago))
    check(ExportedPrograms(tmp_path, (), ()), Counted(), num_traced=1)
    assert not abandoned.exists()
    assert in_work.exists()


def test_a_custom_call_that_nobody_vouches_for_is_traced_every_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def program(x: jax.Array) -> jax.Array:
        found: Sequence[jax.Array] = jax.ffi.ffi_call("unknown", [jax.eval_shape(lambda: x)])(x)
        return found[0]

    programs = ExportedPrograms(tmp_path, (), ())
    assert "unknown" in programs.lower("called", program, (jnp.ones(3),), 0, donated=(0,)).as_text()
    assert "is traced" in caplog.text


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    size: int
    colour: Colour
    dtype: np.dtype[Any]
    inner: "Part | None" = None


def test_parts_are_described_by_all_that_they_hold() -> None:
    def make(size: int) -> Part:
        return Part(1, Colour.RED, np.dtype("float32"), Part(size, Colour.RED, np.dtype("int8")))

    assert describe_parts({"a": (make(2),)}) == describe_parts({"a": [make(2)]})
    assert describe_parts(make(2)) != describe_parts(make(3))
    for one in (object(), np.ones(2), {1, 2}, lambda: 0):
        with pytest.raises(UnknownPartError):
            describe_parts(one)


CODE = """
from engine_worker.compute.runner import exported_programs
print(exported_programs._surroundings())
"""


def test_every_process_names_what_a_trace_depends_on_alike() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for _ in range(2)
    }
    assert len(said) == 1
    for word in (b'"code"', b'"jax"', b"jax_enable_x64", b"cpu"):
        assert word in next(iter(said))


def test_a_setting_that_changes_meanwhile_finds_another_file(tmp_path: Path) -> None:
    first, second = Counted(), Counted()
    check(ExportedPrograms(tmp_path, [], ()), first, num_traced=1)
    with jax.default_matmul_precision("float32"):
        check(ExportedPrograms(tmp_path, [], ()), second, num_traced=1)


def make_runner(decoder: PackedDecoder, folder: Path | None) -> JaxModelRunner:
    return JaxModelRunner.create(
        decoder,
        num_blocks=40,
        max_model_len=80,
        block_size=8,
        max_num_seqs=1,
        max_num_batched_tokens=32,
        program_folder=folder,
    )


def decoders() -> list[Any]:
    whole = tiny_spec([None, 20])
    return [
        pytest.param("xla", whole, id="xla"),
        pytest.param("xla", tiny_hybrid_spec(), id="xla, recurrent", marks=pytest.mark.long),
        pytest.param("cpu_native", whole, id="cpu_native", marks=needs_native),
    ]


@pytest.mark.parametrize(("backend", "spec"), decoders())
def test_a_runner_computes_the_same_with_programs_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, spec: Any
) -> None:
    decoder = packed(tiny_weights(spec=spec), backend, "float32")
    drawn = RowSampling(temperature=0.9, seed=5, top_p=0.9)

    def answers(runner: JaxModelRunner) -> list[list[int]]:
        requests = [
            RunnerRequest(0, list(range(3, 40)), [0, 1, 2, 3, 4, 5, 6], GREEDY),
            RunnerRequest(0, list(range(7, 12)), [7, 8, 9, 10], drawn),
        ]
        return [generate(runner, request, 8) for request in requests]

    expected = answers(make_runner(decoder, None))
    assert answers(make_runner(decoder, tmp_path)) == expected

    def fail(*_: object) -> None:
        raise AssertionError("it is traced")

    monkeypatch.setattr(StepProgram, "__call__", fail)
    monkeypatch.setattr(FullSampler, "__call__", fail)
    later = make_runner(decoder, tmp_path)
    assert answers(later) == expected
    for bucket, program in later.programs.items():
        memory = program.memory_analysis()
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(later.state))
        assert memory.alias_size_in_bytes == state_bytes, bucket


def test_families_of_other_packages_are_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec([None])
    monkeypatch.setattr("engine_worker.loading.decoder.origin_of", lambda name: "")
    assert choose_program_folder(tmp_path, spec) == tmp_path / "programs"
    assert choose_program_folder(None, spec) is None
    monkeypatch.setattr("engine_worker.loading.decoder.origin_of", lambda name: "other 1.0")
    assert choose_program_folder(tmp_path, spec) is None
