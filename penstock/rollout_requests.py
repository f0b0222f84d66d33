"""Where a running `penstock serve` takes rollouts from `penstock roll`: files in its own folder.

`DATA_DIR/serve.json` leads to the server's folder of sockets, and is locked as long as the server
lives. A rollout is a file `rolls/NAME.request` there, and `NAME.status` says how it goes.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from penstock.config import ServeSettings
from penstock.rollout import End, Rollout
from penstock.supervisor import Supervisor

logger = logging.getLogger("penstock.roll")

STATE_NAME: Final = "serve.json"
ROLLS_NAME: Final = "rolls"


class ServerState(msgspec.Struct, frozen=True):
    """What commands of this machine need to know of a running server.

    Attributes:
        run_dir: Its folder of sockets.
        models: Names that it serves.
        dtype: As it was started, as all that follow; they decide how much memory weights take.
    """

    run_dir: str
    models: tuple[str, ...]
    dtype: str
    backend: str
    deterministic: bool
    max_model_len: int | None
    kv_dtype: str = "auto"


class RolloutRequest(msgspec.Struct, frozen=True):
    """Which weights a model is to be served with; a path of None is the bundled ones."""

    model: str
    path: str | None


class RolloutStatus(msgspec.Struct, frozen=True):
    """How a rollout goes.

    Attributes:
        said: Each step so far, a line of text.
        end: How it ended; empty while it is under way.
    """

    said: tuple[str, ...]
    end: End = ""


def write_whole(path: Path, content: bytes) -> None:
    """Let a file be there with all its content, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


class RolloutRequests:
    """Takes rollouts, one at a time; a context manager, and `poll` several times a second.

    Args:
        supervisor: Of the server's processes; nobody else may write to its folder of sockets.
        settings: Of the server.
    """

    def __init__(self, supervisor: Supervisor, settings: ServeSettings) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self._run_dir = supervisor.run_dir
        self._rolls = supervisor.run_dir / ROLLS_NAME
        self._state_path = settings.data_dir / STATE_NAME
        self._lock: int | None = None
        self._rollout: Rollout | None = None
        self._status_path = Path()
        self._said: list[str] = []
        self._told: RolloutStatus | None = None

    def __enter__(self) -> "RolloutRequests":
        try:
            self._rolls.mkdir(mode=0o700)
            self._announce()
        except OSError as error:
            logger.warning(
                "%s can't be written (%s), so `penstock roll` will not find this server",
                self._state_path, error.strerror,
            )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            with suppress(OSError):
                self._state_path.unlink(missing_ok=True)
            os.close(self._lock)

    def poll(self) -> None:
        """Take what was asked for, and do the next step of what is under way."""
        with suppress(OSError):  # of a full disk: what is left is taken the next time
            for path in sorted(self._rolls.glob("*.request")):
                self._take(path)
        if self._rollout is None:
            return
        self._rollout.poll()
        status = RolloutStatus(tuple(self._said), self._rollout.end)
        if status != self._told:
            with suppress(OSError):  # likewise
                _tell(self._status_path, status)
                self._told = status

    def _announce(self) -> None:
        """Write the file, locked before anybody can find it.

        Raises:
            OSError: It can't be written, or belongs to a server that runs.
        """
        with suppress(FileNotFoundError):
            other = os.open(self._state_path, os.O_RDONLY)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(other)
        settings = self._settings
        state = ServerState(
            str(self._run_dir),
            tuple(model.name for model in settings.models),
            settings.dtype,
            settings.backend,
            settings.deterministic,
            settings.max_model_len,
            settings.kv_dtype,
        )
        beside = self._state_path.with_name(f".{STATE_NAME}.{os.getpid()}")
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(lock, msgspec.json.encode(state))
            beside.replace(self._state_path)
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

    def _take(self, path: Path) -> None:
        try:
            asked = msgspec.json.decode(path.read_bytes(), type=RolloutRequest)
        except msgspec.MsgspecError as error:
            _refuse(path, f"the request can't be read: {error}")
            return
        if self._rollout is not None and not self._rollout.end:
            _refuse(path, "another rollout is under way; try again when it has ended")
            return
        path.unlink()
        self._said = []
        self._told = None
        self._status_path = path.with_suffix(".status")
        self._rollout = Rollout(
            self._supervisor,
            asked.model,
            None if asked.path is None else Path(asked.path),
            drain_timeout_s=self._settings.drain_timeout_s,
            say=self._say,
        )

    def _say(self, line: str) -> None:
        # A warning, because others aren't shown by default.
        logger.warning("%s", line)
        self._said.append(line)


def _refuse(path: Path, why: str) -> None:
    _tell(path.with_suffix(".status"), RolloutStatus((why,), "failed"))
    path.unlink()


def _tell(path: Path, status: RolloutStatus) -> None:
    write_whole(path, msgspec.json.encode(status))
