"""`penstock roll`: engines are replaced one after the other, with real child processes."""

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from penstock.config import ServeSettings, build_settings
from penstock.errors import CommandError, ModelError, ServerError, UsageError
from penstock.restart_policy import MAX_DELAY_S
from penstock.roll import roll, running_server
from penstock.rollout import Rollout
from penstock.rollout_requests import (
    STATE_NAME,
    RolloutRequest,
    RolloutRequests,
    RolloutStatus,
    ServerState,
)
from penstock.supervisor import Child, ProcessSpec, Supervisor
from tests.unit.penstock.test_supervisor import Clock, child, eventually, supervise

MODEL = "PENSTOCK_MODEL_NAME"
PATH = "PENSTOCK_MODEL_PATH"
READY = "PENSTOCK_READY_FILE"


def engine(tmp_path: Path, name: str, behaviour: str = "run", model: str = "m") -> ProcessSpec:
    spec = child(tmp_path, name, behaviour)
    return replace(spec, environment={**spec.environment, MODEL: model, PATH: "/old"})


class Rolling:
    """A rollout under way, and what it said.

    Args:
        supervisor: With its processes running.
        path: Of the new weights.
    """

    def __init__(self, supervisor: Supervisor, path: Path | None = Path("/new")) -> None:
        self.said: list[str] = []
        self.clock = Clock()
        self.rollout = Rollout(
            supervisor,
            "m",
            path,
            drain_timeout_s=20.0,
            say=self.said.append,
            clock=self.clock,
        )
        self.supervisor = supervisor

    def poll(self) -> None:
        self.rollout.poll()
        self.supervisor.poll()

    def until(self, condition: Callable[[], bool]) -> None:
        def met() -> bool:
            self.poll()
            return condition()

        eventually(met)


def be_ready(one: Child) -> None:
    """What an engine writes once a gateway gives it work."""
    assert one.process is not None
    Path(one.spec.environment[READY]).write_text(f"{one.process.pid}\n")


def paths(supervisor: Supervisor) -> list[str | None]:
    return [one.spec.environment.get(PATH) for one in supervisor.children]


def test_each_engine_ends_once_another_one_serves(tmp_path: Path) -> None:
    specs = (
        engine(tmp_path, "a"),
        engine(tmp_path, "b"),
        engine(tmp_path, "other", model="other"),
        child(tmp_path, "gateway", "run"),
    )
    with supervise(*specs, run_dir=tmp_path / "run") as supervisor:
        first, second, *_ = old = list(supervisor.children)
        rolling = Rolling(supervisor)
        rolling.poll()
        assert supervisor.children[:4] == old
        new = supervisor.children[4]
        for _ in range(3):
            rolling.poll()
        assert first.is_alive, "the new one does not serve yet"
        be_ready(new)
        rolling.until(lambda: not first.is_alive)
        rolling.until(lambda: new in supervisor.children[:1])
        assert second.is_alive
        rolling.until(lambda: len(supervisor.children) == 5)
        assert second.is_alive
        be_ready(supervisor.children[4])
        rolling.until(lambda: rolling.rollout.end == "done")
        assert [one.spec.name for one in supervisor.children] == ["a", "b", "other", "gateway"]
        assert paths(supervisor) == ["/new", "/new", "/old", None]
        assert all(one.is_alive for one in supervisor.children)
        assert [one.is_alive for one in old[:2]] == [False, False]
        told = len(rolling.said)
        rolling.poll()
        assert len(rolling.said) == told == 7
    assert rolling.said[-1] == "m: 2 of 2 engines serve /new"
    ready_files = {one.spec.environment.get(READY) for one in supervisor.children[:2]}
    assert len(ready_files) == 2


def test_an_engine_with_new_weights_is_started_again_with_them(tmp_path: Path) -> None:
    clock = Clock()
    spec = engine(tmp_path, "a")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock) as supervisor:
        supervisor.was_ready = True
        rolling = Rolling(supervisor)
        rolling.poll()
        new = supervisor.children[1]
        be_ready(new)
        rolling.until(lambda: rolling.rollout.end == "done")
        assert new.process is not None
        killed = new.process
        killed.kill()
        killed.wait()
        supervisor.poll()
        clock.offset += MAX_DELAY_S
        supervisor.poll()
        assert new.process is not killed
        assert new.is_alive
        assert paths(supervisor) == ["/new"]


def test_back_to_the_bundled_weights_there_is_no_path(tmp_path: Path) -> None:
    with supervise(engine(tmp_path, "a"), run_dir=tmp_path / "run") as supervisor:
        rolling = Rolling(supervisor, None)
        rolling.poll()
        be_ready(supervisor.children[1])
        rolling.until(lambda: rolling.rollout.end == "done")
        assert paths(supervisor) == [None]
    assert rolling.said[-1] == "m: 1 of 1 engines serve the bundled weights"


def test_what_can_not_start_leaves_the_old_engines_alone(tmp_path: Path) -> None:
    specs = (engine(tmp_path, "a"), engine(tmp_path, "b"))
    with supervise(*specs, run_dir=tmp_path / "run") as supervisor:
        old = list(supervisor.children)
        rolling = Rolling(supervisor)
        rolling.poll()
        new = supervisor.children[2]
        assert new.process is not None
        new.process.kill()
        rolling.until(lambda: rolling.rollout.end == "failed")
        assert supervisor.children == old
        assert all(one.is_alive and one.is_kept for one in old)
    assert "ended (signal 9;" in rolling.said[-2]
    assert rolling.said[-1] == ("m: 2 of 2 engines go on with the old weights, 0 serve /new")


def test_a_start_that_the_system_refuses_ends_it_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with supervise(engine(tmp_path, "a"), run_dir=tmp_path / "run") as supervisor:

        def refuse(*arguments: object, **options: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        with monkeypatch.context() as patch:
            patch.setattr("penstock.supervisor.subprocess.Popen", refuse)
            rolling = Rolling(supervisor)
            rolling.poll()
        assert rolling.rollout.end == "failed"
        assert [one.is_alive for one in supervisor.children] == [True]
    assert "Resource temporarily unavailable" in rolling.said[0]


def test_an_old_engine_that_does_not_end_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    with supervise(engine(tmp_path, "a", "drain"), run_dir=tmp_path / "run") as supervisor:
        eventually(lambda: (tmp_path / "a").exists())
        (old,) = supervisor.children
        rolling = Rolling(supervisor)
        rolling.poll()
        be_ready(supervisor.children[1])
        rolling.until(lambda: "draining" in (tmp_path / "a").read_text())
        rolling.clock.offset += 19.0
        rolling.poll()
        assert old.is_alive
        rolling.clock.offset += 2.0
        rolling.until(lambda: rolling.rollout.end == "done")
        assert old not in supervisor.children
        assert old.process is not None
        assert old.process.returncode == -signal.SIGKILL
        assert len(supervisor.children) == 1
    assert any("did not end in time and is killed" in line for line in rolling.said)


def test_an_old_engine_that_dies_while_the_new_one_starts_comes_back(tmp_path: Path) -> None:
    clock = Clock()
    spec = engine(tmp_path, "a")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock) as supervisor:
        supervisor.was_ready = True
        rolling = Rolling(supervisor)
        rolling.poll()
        old, new = supervisor.children
        assert old.process is not None
        old.process.kill()
        old.process.wait()
        rolling.poll()
        clock.offset += MAX_DELAY_S
        rolling.poll()
        assert old.is_alive
        assert paths(supervisor) == ["/old", "/new"]
        be_ready(new)
        rolling.until(lambda: rolling.rollout.end == "done")
        assert paths(supervisor) == ["/new"]


# The command and the server.


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    (tmp_path / "data").mkdir()
    return build_settings(
        {"models": ["m=/old"], "data_dir": str(tmp_path / "data"), "max_model_len": 64},
        {"HOME": str(tmp_path)},
    )


class Server:
    """What `penstock serve` does once it serves, in a thread; engines are ready at once."""

    def __init__(self, supervisor: Supervisor, settings: ServeSettings) -> None:
        self.requests = RolloutRequests(supervisor, settings)
        self._supervisor = supervisor
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Server":
        self.requests.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.requests.__exit__()

    def _run(self) -> None:
        while not self._is_over.wait(0.01):
            self._supervisor.poll()
            self.requests.poll()
            for one in self._supervisor.children:
                if READY in one.spec.environment and one.is_alive:
                    be_ready(one)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with supervise(engine(tmp_path, "a"), run_dir=tmp_path / "run") as running:
        yield running


def weights(folder: Path) -> Path:
    """A folder that passes for a checkpoint."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


def test_the_command_waits_until_all_engines_have_the_new_weights(
    tmp_path: Path, supervisor: Supervisor, settings: ServeSettings
) -> None:
    folder = weights(tmp_path / "new")
    said: list[str] = []
    with Server(supervisor, settings):
        roll(f"m={folder}", revision=None, data_dir=settings.data_dir, say=said.append)
    assert paths(supervisor) == [str(folder)]
    assert said[-2] == f"m: 1 of 1 engines serve {folder}"
    assert f"m={folder}" in said[-1]
    assert not (settings.data_dir / STATE_NAME).exists()


def test_the_memory_that_weights_take_is_counted_as_the_server_was_started(
    supervisor: Supervisor, settings: ServeSettings
) -> None:
    with RolloutRequests(supervisor, settings):
        state = running_server(settings.data_dir)
    assert state == ServerState(
        *(str(supervisor.run_dir), ("m",), settings.dtype, settings.backend, False, 64),
        kv_dtype=settings.kv_dtype,
    )


def test_what_can_not_be_is_one_clear_error(
    tmp_path: Path, supervisor: Supervisor, settings: ServeSettings
) -> None:
    def asked(model: str) -> None:
        roll(model, revision=None, data_dir=settings.data_dir, say=lambda line: None)

    with pytest.raises(ServerError, match="No `penstock serve`"):
        asked("m=/new")
    # What a server left that was killed.
    (settings.data_dir / STATE_NAME).write_text("{}")
    with pytest.raises(ServerError, match="No `penstock serve`"):
        asked("m=/new")
    with Server(supervisor, settings):
        with pytest.raises(UsageError, match="serves m, not x"):
            asked("x=/new")
        with pytest.raises(ModelError, match="neither a folder"):
            asked("m=/nowhere/at/all")
    assert paths(supervisor) == ["/old"]


def test_a_file_of_another_release_is_one_clear_error(settings: ServeSettings) -> None:
    path = settings.data_dir / STATE_NAME
    path.write_text('{"run_dir": 1}')
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ServerError, match="another release"):
            running_server(settings.data_dir)


def test_a_rollout_that_fails_is_told_with_its_steps(
    tmp_path: Path, supervisor: Supervisor, settings: ServeSettings
) -> None:
    folder = weights(tmp_path / "new")
    said: list[str] = []
    requests = RolloutRequests(supervisor, settings)
    with requests:
        thread_error: list[BaseException] = []

        def ask() -> None:
            try:
                roll(f"m={folder}", revision=None, data_dir=settings.data_dir, say=said.append)
            except CommandError as error:
                thread_error.append(error)

        asking = threading.Thread(target=ask)
        asking.start()

        def is_started() -> bool:
            requests.poll()
            return len(supervisor.children) == 2

        eventually(is_started)
        process = supervisor.children[1].process
        assert process is not None
        process.kill()
        process.wait()
        requests.poll()
        asking.join(60)
    (error,) = thread_error
    assert "did not reach all engines" in str(error)
    assert said[-1] == f"m: 1 of 1 engines go on with the old weights, 0 serve {folder}"


def status(path: Path) -> RolloutStatus:
    return msgspec.json.decode(path.with_suffix(".status").read_bytes(), type=RolloutStatus)


def test_one_rollout_goes_at_a_time_and_nonsense_is_refused(
    supervisor: Supervisor, settings: ServeSettings
) -> None:
    with RolloutRequests(supervisor, settings) as requests:
        folder = supervisor.run_dir / "rolls"
        names = [folder / f"{name}.request" for name in ("a", "b", "c", "d")]
        names[0].write_bytes(b"[]")
        for path in names[1:3]:
            path.write_bytes(msgspec.json.encode(RolloutRequest("m", "/new")))
        requests.poll()
        assert not list(folder.glob("*.request"))
        assert status(names[0]).end == "failed"
        assert status(names[1]).end == ""
        assert "starts with /new" in status(names[1]).said[0]
        assert "another rollout is under way" in status(names[2]).said[0]
        be_ready(supervisor.children[1])

        def is_done() -> bool:
            requests.poll()
            return status(names[1]).end == "done"

        eventually(is_done)
        names[3].write_bytes(msgspec.json.encode(RolloutRequest("nobody", "/new")))
        requests.poll()
        assert "no engine of that name" in status(names[3]).said[0]
        assert status(names[3]).end == "failed"


def test_a_server_that_ends_ends_the_wait_for_it(tmp_path: Path, settings: ServeSettings) -> None:
    folder = weights(tmp_path / "new")
    with (
        supervise(engine(tmp_path, "a"), run_dir=tmp_path / "run") as running,
        RolloutRequests(running, settings),
    ):
        found: list[BaseException] = []

        def ask() -> None:
            try:
                roll(f"m={folder}", revision=None, data_dir=settings.data_dir, say=print)
            except CommandError as error:
                found.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: bool(list((running.run_dir / "rolls").glob("*.request"))))
    asking.join(60)
    assert "The server has ended" in str(found[0])


def test_a_second_server_on_the_same_data_leaves_the_first_to_be_found(
    tmp_path: Path,
    supervisor: Supervisor,
    settings: ServeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RolloutRequests(supervisor, settings):
        (tmp_path / "run2").mkdir()
        second = Supervisor((), dict(os.environ), tmp_path / "run2", drain_timeout_s=1.0)
        with caplog.at_level(logging.WARNING), RolloutRequests(second, settings):
            assert running_server(settings.data_dir).run_dir == str(supervisor.run_dir)
        assert "`penstock roll` will not find this server" in caplog.text
        assert running_server(settings.data_dir).run_dir == str(supervisor.run_dir)
