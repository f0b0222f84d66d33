"""Programs that are compiled before and behind the start, and what stands in for them."""

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import jax.monitoring
import numpy as np
import pytest

from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.runner import program_store
from engine_worker.compute.runner.compiler_threads import CompilerThreads
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.program_store import NEEDED_USES, ProgramStore
from tests.fakes.runner_requests import RunnerRequest, generate
from tests.fakes.tiny_decoder import tiny_spec


class SlowCompiler:
    """Compiles numbers to texts; those in `held` only once they are let go, `broken` ones never."""

    def __init__(
        self,
        *,
        held: frozenset[int] = frozenset(),
        broken: int | None = None,
        error: type[BaseException] = RuntimeError,
    ) -> None:
        self._held = held
        self._broken = broken
        self._error = error
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()
        self.compiled: list[int] = []

    def __call__(self, key: int) -> str:
        if key in self._held:
            self.is_held.set()
            assert self.may_go_on.wait(60)
        if key == self._broken:
            raise self._error("planned failure")
        self.compiled.append(key)
        return f"program {key}"


def test_a_larger_program_stands_in_until_the_right_one_is_ready() -> None:
    compiler = SlowCompiler(held=frozenset({1}))
    store = ProgramStore[int](compiler, str)
    reports: list[tuple[float, str]] = []
    store.warm_up([8], [1, 8], lambda done, text: reports.append((done, text)))
    assert reports == [(1.0, "compiled 8")]
    assert store.first_ready([1, 4, 8]) == 8
    compiler.may_go_on.set()
    store.finish_warm_up()
    assert store.first_ready([1, 4, 8]) == 1
    assert store.get(1) == "program 1"
    assert (store.num_compiles, compiler.compiled) == (2, [8, 1])


def test_before_the_warm_up_programs_are_compiled_when_they_are_asked_for() -> None:
    compiler = SlowCompiler()
    store = ProgramStore[int](compiler, str)
    assert store.get(store.first_ready([4, 8])) == "program 4"
    store.warm_up([4, 8], [], lambda done, text: None)
    assert compiler.compiled == [4, 8]


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_a_program_that_cannot_be_compiled_behind_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    store = ProgramStore[int](SlowCompiler(broken=2, error=error), str)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    store.finish_warm_up()
    assert [store.first_ready([size, 8]) for size in (1, 2, 4)] == [1, 8, 4]
    assert "2 could not be compiled" in caplog.text


def test_stopping_waits_for_the_program_in_hand_and_leaves_the_rest() -> None:
    compiler = SlowCompiler(held=frozenset({1}))
    store = ProgramStore[int](compiler, str, idle_s=0.0)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    assert compiler.is_held.wait(60)
    stopping = threading.Thread(target=store.stop)
    stopping.start()
    while not store._is_stopping:
        time.sleep(0.001)
    compiler.may_go_on.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert compiler.compiled == [8, 1]
    assert "compile" not in {thread.name for thread in threading.enumerate()}


def never_idle(compiler: SlowCompiler) -> ProgramStore[int]:
    """A store at which a step has always just begun."""
    return ProgramStore[int](compiler, str, idle_s=1e9)


def test_while_steps_run_nothing_is_compiled_that_they_do_not_need() -> None:
    """All of it was compiled at once, and took the cores from the first users."""
    compiler = SlowCompiler()
    store = never_idle(compiler)
    store.warm_up([8], [1, 2, 4, 8], lambda done, text: None)
    for _ in range(NEEDED_USES - 1):
        assert store.first_ready([4, 8]) == 8
    assert compiler.compiled == [8]
    assert store.first_ready([4, 8]) == 8
    while store.first_ready([4, 8]) == 8:
        time.sleep(0.001)
    assert compiler.compiled == [8, 4]
    store.stop()
    assert compiler.compiled == [8, 4]


def test_what_steps_miss_most_is_compiled_first() -> None:
    compiler = SlowCompiler(held=frozenset({1}))
    store = never_idle(compiler)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    for _ in range(NEEDED_USES):
        store.first_ready([1, 8])
    assert compiler.is_held.wait(60)
    for size, num_uses in ((2, NEEDED_USES), (4, NEEDED_USES + 1)):
        for _ in range(num_uses):
            store.first_ready([size, 8])
    compiler.may_go_on.set()
    while 4 not in store.programs:
        time.sleep(0.001)
    # What was missed before that is no need now.
    store.first_ready([2, 8])
    assert compiler.compiled == [8, 1, 4]
    while 2 not in store.programs:
        store.first_ready([2, 8])
        time.sleep(0.001)
    store.stop()
    assert compiler.compiled == [8, 1, 4, 2]


def test_what_compiling_leaves_in_the_heap_is_given_back_after_each_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_trimmed = threading.Event()
    monkeypatch.setattr(program_store, "trim_heap", is_trimmed.set)
    compiler = SlowCompiler()
    store = never_idle(compiler)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    for _ in range(NEEDED_USES):
        store.first_ready([2, 8])
    assert is_trimmed.wait(60)
    store.stop()
    assert compiler.compiled == [8, 2]


def test_right_after_the_start_the_first_users_come_first() -> None:
    """The seconds of the warm-up are no idle time: it began with what nobody asked for."""
    times = iter([0.0])
    compiler = SlowCompiler()
    store = ProgramStore[int](compiler, str, idle_s=5.0, clock=lambda: next(times, 1000.0))
    store.warm_up([8], [1, 2], lambda done, text: None)
    for _ in range(NEEDED_USES):
        store.first_ready([2, 8])
    while 2 not in store.programs:
        time.sleep(0.001)
    store.stop()
    assert compiler.compiled == [8, 2]


def test_without_steps_all_is_compiled_in_order_of_demand() -> None:
    compiler = SlowCompiler()
    store = ProgramStore[int](compiler, str, idle_s=0.0)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    store.finish_warm_up()
    assert compiler.compiled == [8, 1, 2, 4]


def test_who_waits_for_all_programs_gets_them_though_steps_run() -> None:
    compiler = SlowCompiler()
    store = never_idle(compiler)
    store.warm_up([8], [1, 2, 4], lambda done, text: None)
    store.finish_warm_up()
    assert compiler.compiled == [8, 1, 2, 4]


class NotingThreads(CompilerThreads):
    """Notes what is done, and finds the thread 5 each time."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[set[int]]:
        self.order.append("watched")
        yield {5}

    def give_way(self, thread_ids: Iterable[int]) -> None:
        self.order.append(f"{thread_ids} give way")

    def compile(self, key: int) -> str:
        self.order.append(f"compiles {key}")
        return ""


def test_the_compilers_threads_give_way_once_the_first_programs_are_there() -> None:
    threads = NotingThreads()
    store = ProgramStore[int](threads.compile, str, compiler_threads=threads, idle_s=0.0)
    store.warm_up([8], [1], lambda done, text: None)
    store.finish_warm_up()
    turn = ["watched", "compiles {}", "{{5}} give way"]
    assert threads.order == [text.format(key) for key in (8, 1) for text in turn]


def test_threads_that_worked_beside_a_step_keep_their_priority() -> None:
    """They may be the step's own."""
    threads = NotingThreads()

    def compile_program(key: int) -> str:
        if key == 1:
            store.first_ready([8])
        return threads.compile(key)

    store = ProgramStore[int](compile_program, str, compiler_threads=threads, idle_s=0.0)
    store.warm_up([8], [1], lambda done, text: None)
    store.finish_warm_up()
    assert threads.order[-2:] == ["watched", "compiles 1"]


def test_a_store_that_compiles_nothing_behind_is_stopped_too() -> None:
    ProgramStore[int](SlowCompiler(), str).stop()


def test_the_log_counts_programs_that_came_from_the_cache_and_not_what_else_was_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As jax tells it: one event a module, in the thread that compiles; key 1 has two modules."""
    caplog.set_level(logging.INFO, logger="penstock.runner")
    hit, miss = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))
    events = {1: (hit, hit), 2: (hit,), 3: (miss,), 4: (hit, miss)}

    def compile_program(key: int) -> str:
        for event in events[key]:
            jax.monitoring.record_event(event)
        other = threading.Thread(target=jax.monitoring.record_event, args=(hit,))
        other.start()
        other.join()
        return f"program {key}"

    store = ProgramStore[int](compile_program, str)
    store.warm_up([1, 2], [3, 4], lambda done, text: None)
    store.finish_warm_up()
    first, behind = caplog.messages
    assert re.fullmatch(r"2 programs ready in .* s, 2 of them from the compile cache", first)
    assert re.fullmatch(r"2 programs ready in .* s, 0 of them from the compile cache", behind)


def test_one_of_the_first_programs_that_fails_stops_the_start() -> None:
    store = ProgramStore[int](SlowCompiler(broken=8), str)
    with pytest.raises(RuntimeError, match="planned failure"):
        store.warm_up([8], [1], lambda done, text: None)


def test_work_that_comes_before_its_program_gives_the_same_tokens() -> None:
    weights = random_weights(declare(tiny_spec([None]), np.float32), seed=1)

    def fresh() -> JaxModelRunner:
        return JaxModelRunner.create(
            weights,
            num_blocks=16,
            max_model_len=48,
            block_size=4,
            max_num_seqs=2,
            max_num_batched_tokens=64,
        )

    def output(runner: JaxModelRunner) -> list[int]:
        return generate(runner, RunnerRequest(0, (5, 6, 7), range(12)), 5)

    early = fresh()
    # As if the thread behind had not come to anything yet.
    largest = (early._buckets.decode[-1], early._buckets.prefill[-1])
    early._programs.store.warm_up(largest, [], lambda done, text: None)
    num_compiles = early.num_compiles
    assert output(early) == output(fresh())
    assert early.num_compiles == num_compiles


@pytest.mark.parametrize("yields", [False, True])
def test_only_a_process_that_serves_has_the_compiler_give_way(*, yields: bool) -> None:
    """Its threads are all runners' of a process, and nothing makes them faster again."""
    weights = random_weights(declare(tiny_spec([None]), np.float32), seed=1)
    runner = JaxModelRunner.create(
        weights, num_blocks=4, max_model_len=16, block_size=4, compiler_yields=yields
    )
    assert (runner._programs.store._compiler_threads is not None) is yields
