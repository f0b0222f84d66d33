"""Starts every process of the server on this machine, restarts what dies, ends all of it."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from penstock.config import ServeSettings
from penstock.errors import CommandError
from penstock.restart_policy import (
    EXIT_CANNOT_START,
    RestartPolicy,
    may_pass,
)
from protocol.runtime.container_limits import num_usable_cores, shares_of_cores
from protocol.runtime.settings import environment_of
from protocol.runtime.shared_settings import SHARED, THREADS
from protocol.wire.endpoints import ENDPOINT_SETTINGS
from protocol.wire.readiness import READY_FILE_SETTING

logger = logging.getLogger("penstock.supervisor")

SECRETS_OF_AUTH = ("PENSTOCK_ADMIN_KEY", "PENSTOCK_DATABASE_URL")
SECRETS_OF_GATEWAY = ("PENSTOCK_STORE_URL",)

_POLL_S = 0.1
_KILL_GRACE_S = 2.0
"""After a second signal: for telling clients, writing down what was used and saying goodbye."""
_SIGNAL_INTERVAL_S = 0.3
"""Two signals of a kind become one while the first is pending, so the second one comes later."""
_LATEST_START_S = 5.0
"""After so long a process is started that waits for another one's file."""
_ENDING_SHARE = 0.4
_MAX_ENDING_S = 10.0
"""Of the drain time, at most so much is kept for what comes after: ending the rest with a clear
event, flushing, settling, and the workers' own goodbyes."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep alive.

    Attributes:
        name: For logs: `engine[penstock-demo]-0`.
        module: Started as `python -m module`.
        environment: Added to the common environment.
        stop_order: Lower stops first: the gateway drains while the workers still answer.
        starts_after: The first start waits for this file, though not for long.
    """

    name: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    stop_order: int = 1
    starts_after: Path | None = None


class Child:
    """One running (or waiting, or given-up) process.

    Attributes:
        is_kept: Whether it is started again when it dies; otherwise whoever says so follows it.
    """

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.policy = RestartPolicy()
        self.process: subprocess.Popen[bytes] | None = None
        self.restart_at: float | None = None
        self.last_cause = ""
        self.given_up = False
        self.is_kept = True

    @property
    def is_alive(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.poll() is None

    def is_due(self, now: float) -> bool:
        """Whether it is to be started now, where `restart_at` says that it is to be."""
        assert self.restart_at is not None  # noqa: S101
        file = self.spec.starts_after
        is_awaited = self.process is None and file is not None and file.exists()
        return is_awaited or now >= self.restart_at


def describe(status: int) -> str:
    """An exit status in words; `subprocess` gives a signal as a negative one."""
    if status == -signal.SIGKILL:
        return "signal 9; the system kills processes when it runs out of memory"
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def process_specs(
    settings: ServeSettings, folders: Mapping[str, Path | None], run_dir: Path
) -> tuple[ProcessSpec, ...]:
    """The processes of a server.

    Args:
        settings: What to serve.
        folders: Model name → local folder; None is the bundled demo model.
        run_dir: Folder of the sockets.
    """
    num_engines = sum(model.num_engines for model in settings.models)
    gateways, formats = _gateways(settings, run_dir), _formats(settings)
    # An engine takes longest, then a gateway. On few cores others at once would only delay them.
    has_cores = num_usable_cores() > num_engines + len(gateways)
    after = None if has_cores else run_dir / "port"
    auth_environment = _given(settings, SECRETS_OF_AUTH)
    others = [
        ProcessSpec("auth", "auth_worker", auth_environment, 3, after),
        *(
            ProcessSpec(f"toolparser-{number}", "toolparser_worker", formats, 2, after)
            for number in range(settings.num_parsers)
        ),
    ]
    engines: list[ProcessSpec] = []
    threads = iter(_threads(settings, num_engines))
    for model in settings.models:
        environment = {"PENSTOCK_MODEL_NAME": model.name}
        folder = folders[model.name]
        if folder is not None:
            environment["PENSTOCK_MODEL_PATH"] = str(folder)
        environment |= environment_of(model, SHARED)
        engines += [
            ProcessSpec(
                f"engine[{model.name}]-{number}", "engine_worker", environment | next(threads), 2
            )
            for number in range(model.num_engines)
        ]
    return (*engines, *gateways, *others)


def _threads(settings: ServeSettings, num_engines: int) -> list[dict[str, str]]:
    """For each engine its part of the cores: threads that outnumber them wait for each other.

    A lone engine takes what it may use, which it knows better, and a given number is everybody's.
    """
    if num_engines == 1 or settings.num_threads is not None:
        return [{}] * num_engines
    shares = shares_of_cores(num_usable_cores(), num_engines)
    return [{THREADS.name: str(num_threads)} for num_threads in shares]


def _gateways(settings: ServeSettings, run_dir: Path) -> list[ProcessSpec]:
    """The gateways; several share port and data folder, and workers dial each."""
    environment = _given(settings, SECRETS_OF_GATEWAY)
    suffixes = _suffixes(settings)
    if len(suffixes) > 1:
        environment |= {"PENSTOCK_SHARE_PORT": "true", "PENSTOCK_SHARE_DATA_DIR": "true"}
    ports = settings.metrics_ports or [0] * len(suffixes)
    return [
        ProcessSpec(
            f"gateway{suffix}",
            "gateway",
            {
                **environment,
                "PENSTOCK_PORT_FILE": str(run_dir / f"port{suffix}"),
                "PENSTOCK_METRICS_PORT": str(metrics_port),
                **{
                    setting: f"ipc://{run_dir}/{role}{suffix}"
                    for role, setting in ENDPOINT_SETTINGS.items()
                },
            },
            stop_order=0,
        )
        for suffix, metrics_port in zip(suffixes, ports, strict=True)
    ]


def _suffixes(settings: ServeSettings) -> list[str]:
    """What the files of each gateway in the folder of sockets are called by, behind their names."""
    return ["", *(f"-{number}" for number in range(1, settings.num_gateways))]


def _formats(settings: ServeSettings) -> dict[str, str]:
    """The formats that models were given by name, for parsers to refuse what they don't know."""
    environment = {}
    for key in ("tool_format", "reasoning_format"):
        names = {str(getattr(model, key)) for model in settings.models if getattr(model, key)}
        if names:
            environment[f"PENSTOCK_{key.upper()}"] = ",".join(sorted(names))
    return environment


def _given(settings: ServeSettings, secrets: Sequence[str]) -> dict[str, str]:
    """The secrets of one process, as far as they were given."""
    given = settings.child_environment
    return {name: given[name] for name in secrets if name in given}


def common_environment(settings: ServeSettings, run_dir: Path) -> dict[str, str]:
    """What every child inherits: the caller's environment, the sockets, the checked settings."""
    consumed = (
        "MODEL_PATH",
        "MODEL_NAME",
        "TOKENIZER_PATH",
        "LORA",
        "TOOL_FORMAT",
        "REASONING_FORMAT",
    )
    # Secrets are one process's alone; a ready file tells of one process, and there are several.
    kept = (*SECRETS_OF_AUTH, *SECRETS_OF_GATEWAY, READY_FILE_SETTING)
    dropped = {*consumed, *(f"PENSTOCK_{name}" for name in consumed), *kept}
    environment = {k: v for k, v in settings.child_environment.items() if k not in dropped}
    environment |= environment_of(settings, SHARED)
    environment |= {
        **{
            setting: ",".join(f"ipc://{run_dir}/{role}{suffix}" for suffix in _suffixes(settings))
            for role, setting in ENDPOINT_SETTINGS.items()
        },
        "PENSTOCK_PARENT_PID": str(os.getpid()),
        "PENSTOCK_RUN_DIR": str(run_dir),
        "PENSTOCK_MODELS": ",".join(model.name for model in settings.models),
        "PENSTOCK_REQUIRE_KEYS": str(settings.require_keys).lower(),
        "PENSTOCK_ALLOW_ANONYMOUS": str(not settings.require_keys).lower(),
        "PENSTOCK_COMPILE_CACHE_DIR": str(settings.cache_dir / "compile"),
        "PENSTOCK_WEIGHTS_CACHE_DIR": str(settings.cache_dir / "weights"),
        "PENSTOCK_DRAIN_TIMEOUT_S": str(children_drain_timeout_s(settings.drain_timeout_s)),
    }
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


def children_drain_timeout_s(drain_timeout_s: float) -> float:
    """How long a child's running work may go on, so that all is over within `drain_timeout_s`."""
    return drain_timeout_s - min(_ENDING_SHARE * drain_timeout_s, _MAX_ENDING_S)


def make_run_dir(environ: Mapping[str, str]) -> Path:
    """A private folder for sockets, short enough for the 107 bytes that an ipc path may have.

    Raises:
        CommandError: None can be made.
    """
    base = environ.get("XDG_RUNTIME_DIR", "")
    try:
        if not base or len(base) > 60 or not os.access(base, os.W_OK):
            base = tempfile.gettempdir()
        if len(base) > 60:
            base = "/tmp"  # noqa: S108  (mkdtemp makes a private folder inside)
        return Path(tempfile.mkdtemp(prefix="penstock-", dir=base))
    except OSError as error:
        where = f" in {error.filename}" if error.filename else ""
        raise CommandError(
            f"The folder for sockets can't be made{where}: {error.strerror}. Name a folder that can"
            " be written in XDG_RUNTIME_DIR or TMPDIR."
        ) from error


class Supervisor:
    """Keeps the processes of `specs` alive until told to stop.

    A context manager: leaving it ends every process and removes the sockets.

    Args:
        specs: What to run.
        environment: Common to all children.
        run_dir: Folder of the sockets; removed at the end.
        drain_timeout_s: All processes are gone this long after the stop began.
        clock: Monotonic seconds.

    Attributes:
        children: The processes.
        run_dir: As given.
        was_ready: Whether the server has served; set by whoever sees it.
        signals: Those that asked it to stop; from the second one on nothing is waited for.
    """

    def __init__(
        self,
        specs: tuple[ProcessSpec, ...],
        environment: Mapping[str, str],
        run_dir: Path,
        *,
        drain_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = dict(environment)
        self.run_dir = run_dir
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self.signals: list[int] = []
        self._previous_handlers: dict[int, object] = {}
        self.children = [Child(spec) for spec in specs]
        self.was_ready = False

    def __enter__(self) -> "Supervisor":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup, which a closing terminal must not end
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        try:
            for child in self.children:
                if child.spec.starts_after is None:
                    self.start(child)
                else:
                    child.restart_at = self._clock() + _LATEST_START_S
        except BaseException as error:
            self.__exit__(None, None, None)  # what was started already must not stay behind
            if isinstance(error, OSError):
                raise CommandError(f"A process can't be started: {error.strerror}.") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def stop_requested(self) -> bool:
        """Whether SIGINT, SIGTERM or SIGHUP came."""
        return bool(self.signals)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals.append(number)

    def start(self, child: Child) -> None:
        """Start the process of a child; `poll` looks at it once it is among `children`.

        Raises:
            OSError: The system refuses.
        """
        spec = child.spec
        # A session of its own: Ctrl-C reaches only the supervisor, which ends things in order.
        child.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", spec.module],
            env={**self._environment, **spec.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        child.restart_at = None
        child.policy.started(self._clock())
        logger.info("%s started, pid %s", spec.name, child.process.pid)

    def poll(self) -> None:
        """Check the children once: note deaths, start again what is due.

        Raises:
            CommandError: A process can't start before the server was ever ready, or none of a kind
                is left that another start could help.
        """
        now = self._clock()
        for child in self.children:
            if child.given_up or not child.is_kept:
                continue
            if child.is_alive:
                self._note_life(child, now)
            elif child.restart_at is None:
                self._note_death(child, now)
            elif child.is_due(now):
                self._start_again(child, now)
            if child.policy.is_reminder_due(now):
                logger.warning(
                    "%s is still down (last: %s); restarting it goes on, see its log above",
                    child.spec.name, child.last_cause,
                )  # fmt: skip
        self._require_something_to_serve()

    def _note_life(self, child: Child, now: float) -> None:
        away_s = child.policy.came_back(now)
        if away_s is not None:
            logger.warning("%s is back after %.1f s", child.spec.name, away_s)

    def _start_again(self, child: Child, now: float) -> None:
        try:
            self.start(child)
        except OSError as error:  # No memory or no process id is free now.
            child.policy.started(now)
            self._plan_start(child, now, f"could not be started: {error.strerror}")

    def _note_death(self, child: Child, now: float) -> None:
        assert child.process is not None  # noqa: S101
        status = child.process.returncode
        how = describe(status)
        name = child.spec.name
        if not self.was_ready and (status == EXIT_CANNOT_START or not may_pass(status)):
            raise CommandError(f"{name} could not start ({how}); its error is above.")
        if may_pass(status):
            self._plan_start(child, now, f"died ({how})")
            return
        child.given_up = True
        logger.error(
            "%s ended with %s, which means wrong settings, and isn't started again; fix what its "
            "log above names and restart penstock", name, how,
        )  # fmt: skip

    def _plan_start(self, child: Child, now: float, cause: str) -> None:
        delay_s, is_news = child.policy.died(now, cause)
        child.last_cause = cause
        child.restart_at = now + delay_s
        level = logging.WARNING if is_news else logging.INFO
        logger.log(level, "%s %s, starting again in %.2f s", child.spec.name, cause, delay_s)

    def _require_something_to_serve(self) -> None:
        for module in {child.spec.module for child in self.children}:
            group = [child for child in self.children if child.spec.module == module]
            if all(child.given_up for child in group):
                raise CommandError(f"No {module} is left to serve; see the errors above.")

    def run(self, also: Callable[[], None] = lambda: None) -> None:
        """Supervise the children until a signal asks to stop.

        Args:
            also: Called as often as they are looked at.

        Raises:
            CommandError: As `poll`.
        """
        while not self.stop_requested:
            self.poll()
            also()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process in order within `drain_timeout_s`, then kill what is left.

        After a second signal to this process none of them waits for what runs.
        """
        if self.stop_requested:
            # A warning, because others aren't shown by default, and silence invites a `kill -9`.
            logger.warning(
                "stopping: running requests have %g s to finish, and all ends within %g s; a "
                "second Ctrl-C or SIGTERM ends it at once",
                children_drain_timeout_s(self._drain_timeout_s), self._drain_timeout_s,
            )  # fmt: skip
        deadline = self._clock() + self._drain_timeout_s
        for order in sorted({child.spec.stop_order for child in self.children}):
            group = [child for child in self.children if child.spec.stop_order == order]
            terminate(group)
            self._await_exits(group, deadline)

    def _await_exits(self, group: Sequence[Child], deadline: float) -> None:
        """Wait for processes that were told to end; kill those that don't in time."""
        hurry_at = self._clock() + _SIGNAL_INTERVAL_S
        is_hurried = False
        while (alive := [child for child in group if child.is_alive]) and self._clock() < deadline:
            if len(self.signals) > 1 and not is_hurried and self._clock() >= hurry_at:
                is_hurried = True
                terminate(alive)  # to them, too, a second one means: at once
                deadline = min(deadline, self._clock() + _KILL_GRACE_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert alive[0].process is not None  # noqa: S101
                alive[0].process.wait(_POLL_S)
        for child in group:
            if child.process is not None and child.is_alive:
                logger.warning("%s did not end in time and is killed", child.spec.name)
                child.process.kill()
                child.process.wait()


def terminate(children: Sequence[Child]) -> None:
    """Tell the processes that run to end."""
    for child in children:
        if child.process is not None and child.is_alive:
            child.process.send_signal(signal.SIGTERM)
