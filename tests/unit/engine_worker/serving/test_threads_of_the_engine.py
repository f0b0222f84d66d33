"""Every thread of an engine worker: what becomes of it when something escapes its work.

What escapes the work of a request fails that request (see the tests of each queue). What escapes
all the same ends the process with an exit code at which supervisors start it again.
"""

import ast
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from msgspec import structs

from engine_worker.config import EngineSettings
from engine_worker.core.credits import CreditPolicy
from engine_worker.embedding.queue import TextQueue
from engine_worker.loading.write_behind import WriteBehind
from engine_worker.serving import service
from engine_worker.serving.handler import EngineHandler
from penstock.restart_policy import may_pass
from protocol.errors import ErrorCode
from protocol.runtime.threads import watch_threads
from protocol.wire.messages import (
    Failure,
    Generate,
    Grammar,
    Message,
    Prepare,
    Prepared,
    Profile,
    SamplingParams,
)
from tests.fakes.source_trees import tree_of

ROOT = Path(__file__).parents[4]
THREADS = {
    # A thread of its own: what escapes it is the hook's, or its own `except` says so.
    ("engine_worker/serving/service.py", "engine"): "test_an_engine_that_breaks_ends_the_process",
    ("engine_worker/serving/service.py", "embedding"): "test_the_thread_of_embeddings_is_watched",
    ("engine_worker/serving/handler.py", "profile"): "test_a_profiler_that_panics_is_answered",
    ("engine_worker/compute/runner/program_store.py", "compile"): "tests of the program store",
    ("engine_worker/grammar/compiler.py", "grammar-spare"): "it is tried again when needed",
    ("engine_worker/grammar/compiler.py", "grammar-rest"): (
        "test_what_rests_is_looked_for_until_the_end"
    ),
    ("engine_worker/loading/write_behind.py", "write-behind"): (
        "test_what_writing_raises_is_told_and_ends_nothing_else"
    ),
    ("engine_worker/text/time_limit.py", "time-limit"): "it looks at clocks and raises nothing",
    ("protocol/runtime/allocator.py", "heap"): "test_what_a_look_raises_ends_no_further_one",
    ("protocol/runtime/lifetime.py", "parent-watch"): "test_a_dead_thread_ends_the_process",
    ("protocol/wire/worker.py", "worker-io"): "test_an_io_thread_that_ends_is_a_failure",
    ("protocol/wire/worker.py", "resolver"): "test_host_names_are_asked_for_again",
    ("protocol/wire/stall_watch.py", "stall-watch"): "it looks at clocks and ends the process",
    ("protocol/runtime/child_process.py", "child"): "what it raises is raised to who waits",
    ("protocol/runtime/otlp.py", "otlp-close"): "the process ends whatever becomes of it",
    # Of gateways only.
    ("protocol/wire/transport_router.py", "zmq-term"): "does nothing but wait",
    # Pools: the work of the first four is watched, the others' results are read.
    ("engine_worker/serving/handler.py", "prepare"): "test_a_pool_is_watched",
    ("engine_worker/serving/handler.py", "prepare-long"): "test_a_pool_is_watched",
    ("engine_worker/serving/acceptance_queue.py", "accept"): "test_a_pool_is_watched",
    ("engine_worker/grammar/compile_queue.py", "grammar"): "test_a_pool_is_watched",
    ("engine_worker/loading/decoder.py", "tokenizer"): "its result is read",
    ("engine_worker/compute/runner/program_store.py", "compile pool"): "its results are read",
    ("engine_worker/compute/weights/gguf/blocks.py", "dequantise"): "its results are read",
    ("engine_worker/compute/weights/file_digests.py", "hash"): "its results are read",
    # Ends the process.
    ("protocol/wire/worker.py", "Timer"): "os._exit",
}
"""Where a thread or a pool is made, its name, and what holds it: a new one belongs in here."""


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


def made_in(path: Path) -> Iterator[str]:
    """Names of the threads and pools that a file makes."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        texts = [
            value.value
            for value in (*node.args, *(keyword.value for keyword in node.keywords))
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        ]
        if called == "Thread":
            yield texts[-1]
        elif called == "Timer":
            yield "Timer"
        elif called in ("ThreadPoolExecutor", "WatchedPool"):
            (name,) = texts
            yield name if name != "compile" else "compile pool"


def test_no_thread_is_made_that_is_not_named_here() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in ("engine_worker", "protocol")
        for path in (ROOT / package).rglob("*.py")
        for name in made_in(path)
    }
    assert found == set(THREADS)


def test_an_engine_that_ends_stops_what_is_written_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_begun, left = threading.Event(), []

    def write(check: Callable[[], None]) -> None:
        has_begun.set()
        try:
            while True:
                check()
        finally:
            left.append("removed")

    def serve(*arguments: Any) -> None:
        (behind,) = [one for one in arguments if isinstance(one, WriteBehind)]
        behind.start("the file", write)
        assert has_begun.wait(60)
        FakeWorker.latest.stop("Told to.", 0)

    assert run_service(monkeypatch, serve) == 0
    assert left == ["removed"]


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that died."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    names: list[str] = []
    watch_threads(names.append)
    return names


class FakeWorker:
    """Waits until it is stopped."""

    instance_id = "engine-1"
    latest: ClassVar["FakeWorker"]

    def __init__(self, **_: Any) -> None:
        self._stopped = threading.Event()
        self._exit_code = -1
        FakeWorker.latest = self

    def start(self) -> None: ...

    def wait(self) -> int:
        assert self._stopped.wait(60)
        return self._exit_code

    def stop(self, reason: str, exit_code: int) -> None:
        self._exit_code = exit_code
        self._stopped.set()


def run_service(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., None]) -> int:
    """The exit code of a process in whose engine thread `serve` runs in place of a model."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(service, "Worker", FakeWorker)
    monkeypatch.setattr(service, "_serve_decoder", serve)
    settings = EngineSettings.from_env({})
    return service.run(settings, endpoints=(), security=None, build="")


def fail(*_: Any, **__: Any) -> Any:
    raise Panic("a bug")


def test_an_engine_that_breaks_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    exit_code = run_service(monkeypatch, fail)
    assert exit_code == service.EXIT_FAILED
    assert may_pass(exit_code)


def test_a_dead_thread_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It went on without what the thread did, and nobody knew."""

    def serve(*_: Any) -> None:
        threading.Thread(target=fail, name="some").start()

    exit_code = run_service(monkeypatch, serve)
    assert exit_code == service.EXIT_FAILED
    assert may_pass(exit_code)


def test_the_thread_of_embeddings_is_watched(
    monkeypatch: pytest.MonkeyPatch, dead: list[str]
) -> None:
    """Every later request for embeddings waited for ever."""
    embeddings: Any = None
    outlet: Any = None
    queue = TextQueue(embeddings, outlet)
    monkeypatch.setattr(queue, "_take", fail)
    thread = threading.Thread(target=queue.run, name="embedding")
    thread.start()
    thread.join(60)
    assert dead == ["embedding"]


class Outlet:
    """Notes what is sent, or raises."""

    def __init__(self) -> None:
        self.answers: list[Message] = []
        self.has_answer = threading.Event()
        self.raises = False

    def send(self, _gateway_id: str, message: Message) -> None:
        if self.raises:
            raise Panic("a bug")
        self.answers.append(message)
        self.has_answer.set()

    def gateway_ids(self) -> tuple[str, ...]:
        return ("g",)


def test_a_profiler_that_panics_is_answered() -> None:
    """The thread died, and its client waited until its time was up."""
    outlet: Any = Outlet()
    profiler: Any = SimpleNamespace(record=fail)
    handler = EngineHandler(profiler=profiler)
    handler.connect(outlet)
    handler.on_command("g", Profile(request_id="p", duration_s=1.0))
    assert outlet.has_answer.wait(60)
    (answer,) = outlet.answers
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.INTERNAL_ERROR
    handler.close()


GENERATE = Generate(
    request_id="r",
    choice=0,
    attempt=1,
    prompt_token_ids=(1,),
    sampling=SamplingParams(),
    lease_tokens=1,
    deadline_s=1e6,
)


@pytest.mark.parametrize("pool", ["prepare", "accept", "grammar"])
def test_a_pool_is_watched(monkeypatch: pytest.MonkeyPatch, dead: list[str], pool: str) -> None:
    """What escaped was kept in a future that nobody reads, and its client never heard of it."""
    outlet: Any = Outlet()
    preparer: Any = SimpleNamespace(answer=lambda _: Prepared("p", prompt_token_ids=(1,)))
    unused: Any = SimpleNamespace(accept=fail, start=fail, close=lambda: None)
    handler = EngineHandler()
    handler.connect(outlet)
    handler.serve(preparer, CreditPolicy(8, 1000, 100), unused, unused)
    outlet.raises = True
    has_died = threading.Event()
    hook = threading.excepthook

    def note(args: threading.ExceptHookArgs) -> None:
        hook(args)
        has_died.set()

    monkeypatch.setattr(threading, "excepthook", note)
    inbox: Any = SimpleNamespace(put=fail, expect=lambda: None, stop=lambda: None)
    handler.inbox = inbox
    if pool == "prepare":
        command: Any = Prepare(request_id="p", kind="completion", prompt="a", deadline_s=1e6)
    elif pool == "accept":
        command = structs.replace(GENERATE, output_token_ids=(1,))
    else:
        command = structs.replace(GENERATE, grammar=Grammar(kind="regex", source="a"))
    handler.on_command("g", command)
    assert has_died.wait(60)
    (name,) = dead
    assert name.startswith(pool)
    handler.close()
