"""Replaces the engines of one model while they serve: another one starts, then an old one ends."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from penstock.supervisor import (
    Child,
    ProcessSpec,
    Supervisor,
    children_drain_timeout_s,
    describe,
    terminate,
)
from protocol.runtime.shared_settings import MODEL_NAME, MODEL_PATH
from protocol.wire.readiness import READY_FILE_SETTING, why_not_ready

End = Literal["", "done", "failed"]


class Rollout:
    """Engines with other weights for one model, one after the other; `poll` until it has an end.

    An old engine is told to end only once a gateway gives work to the one that takes its place. If
    that one ends before, the rollout does, and every engine that is left goes on.

    Args:
        supervisor: Of the processes; it starts the new ones again later, as it did the old ones.
        model: The public name.
        path: Folder or file of the new weights; None for the bundled model.
        drain_timeout_s: An old engine that was told to end is killed after it.
        say: Told each step, a line of text.
        clock: Monotonic seconds.

    Attributes:
        end: How it ended; empty while it is under way.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        model: str,
        path: Path | None,
        *,
        drain_timeout_s: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._model = model
        self._path = path
        self._drain_timeout_s = drain_timeout_s
        self._say = say
        self._clock = clock
        self._waiting = [one for one in supervisor.children if _serves(one.spec, model)]
        self._num_engines = len(self._waiting)
        self._old: Child | None = None
        self._new: Child | None = None
        self._deadline: float | None = None
        self.end: End = ""

    def poll(self) -> None:
        """Do what is due: nothing, or the next step."""
        if self.end:
            return
        if self._old is None or self._new is None:
            self._begin_next()
        elif self._deadline is None:
            self._await_ready(self._old, self._new)
        else:
            self._await_end(self._old, self._new, self._deadline)

    def _begin_next(self) -> None:
        if not self._waiting:
            self.end = "done" if self._num_engines else "failed"
            self._say(
                f"{self._model}: {self._num_engines} of {self._num_engines} engines serve "
                f"{self._where}"
                if self._num_engines
                else f"{self._model}: this server has no engine of that name"
            )
            return
        old = self._waiting.pop(0)
        new = Child(_with_weights(old.spec, self._path, self._ready_file(old.spec)))
        new.is_kept = False
        try:
            self._supervisor.start(new)
        except OSError as error:
            self._fail(f"another engine could not be started: {error.strerror}")
            return
        self._supervisor.children.append(new)
        self._old, self._new = old, new
        self._say(f"{new.spec.name}: process {_pid(new)} starts with {self._where}")

    def _await_ready(self, old: Child, new: Child) -> None:
        if not new.is_alive:
            self._supervisor.children.remove(new)
            how = "" if new.process is None else f" ({describe(new.process.returncode)})"
            self._fail(f"process {_pid(new)} ended{how} before it served; the log says why")
            return
        if why_not_ready(Path(new.spec.environment[READY_FILE_SETTING])) is not None:
            return
        new.is_kept, old.is_kept = True, False
        terminate([old])
        self._deadline = self._clock() + self._drain_timeout_s
        self._say(
            f"{new.spec.name}: process {_pid(new)} serves; process {_pid(old)} finishes what it"
            f" has within {children_drain_timeout_s(self._drain_timeout_s):g} s"
        )

    def _await_end(self, old: Child, new: Child, deadline: float) -> None:
        if old.is_alive and self._clock() < deadline:
            return
        if old.process is not None and old.is_alive:
            self._say(f"{old.spec.name}: process {_pid(old)} did not end in time and is killed")
            old.process.kill()
            old.process.wait()
        children = self._supervisor.children
        children.remove(new)
        children[children.index(old)] = new  # where its like stand, for whoever ends them in order
        self._old = self._new = self._deadline = None
        self._say(f"{old.spec.name}: process {_pid(old)} has ended")

    def _fail(self, why: str) -> None:
        self.end = "failed"
        num_left = len(self._waiting) + 1
        self._say(f"{self._model}: {why}")
        self._say(
            f"{self._model}: {num_left} of {self._num_engines} engines go on with the old weights,"
            f" {self._num_engines - num_left} serve {self._where}"
        )

    def _ready_file(self, spec: ProcessSpec) -> Path:
        """One that no other engine has."""
        number = 0
        taken = {
            child.spec.environment.get(READY_FILE_SETTING) for child in self._supervisor.children
        }
        while str(path := self._supervisor.run_dir / f"ready-{number}") in taken:
            number += 1
        path.unlink(missing_ok=True)  # of an engine that was killed
        return path

    @property
    def _where(self) -> str:
        return "the bundled weights" if self._path is None else str(self._path)


def _serves(spec: ProcessSpec, model: str) -> bool:
    """Whether a process is an engine of a model."""
    return spec.environment.get(MODEL_NAME.name) == model


def _with_weights(spec: ProcessSpec, path: Path | None, ready_file: Path) -> ProcessSpec:
    """The same process with other weights."""
    environment = {**spec.environment, READY_FILE_SETTING: str(ready_file)}
    environment.pop(MODEL_PATH.name, None)
    if path is not None:
        environment[MODEL_PATH.name] = str(path)
    return replace(spec, environment=environment)


def _pid(child: Child) -> str:
    return "-" if child.process is None else str(child.process.pid)
