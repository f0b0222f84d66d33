"""`penstock roll`: other weights for a model of a server on this machine, while it serves."""

import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from penstock.config import ServeSettings, build_settings, parse_model
from penstock.errors import CommandError, ServerError, UsageError
from penstock.model_source import resolve_model
from penstock.rollout_requests import (
    ROLLS_NAME,
    STATE_NAME,
    RolloutRequest,
    RolloutStatus,
    ServerState,
    write_whole,
)

_POLL_S = 0.1


def running_server(data_dir: Path) -> ServerState:
    """The server that keeps its data in a folder.

    Raises:
        ServerError: None runs, or it is of another release.
        CommandError: Its file can't be read.
    """
    path = data_dir / STATE_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise ServerError(_no_server(data_dir)) from None
    except OSError as error:
        raise CommandError(f"{path} can't be read: {error.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        if not _is_held(file):
            raise ServerError(_no_server(data_dir))
        try:
            return msgspec.json.decode(file.read(), type=ServerState)
        except msgspec.MsgspecError:
            raise ServerError(f"{path} is of another release of Penstock.") from None


def _is_held(file: BinaryIO) -> bool:
    """Whether a server lives that holds the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _no_server(data_dir: Path) -> str:
    return (
        f"No `penstock serve` that has started runs on this machine with its data in {data_dir}; "
        "name the folder of its --data-dir."
    )


def roll(
    model: str, *, revision: str | None, data_dir: Path | None, say: Callable[[str], None]
) -> None:
    """Have a model served with other weights, and wait until all its engines have them.

    Args:
        model: `NAME=PATH_OR_ID`, a folder or an id, as for `penstock serve`.
        revision: Branch, tag or commit of a hub model.
        data_dir: Of the server; None for the usual one.
        say: Told each step, a line of text.

    Raises:
        CommandError: It can't be done, or ended before all engines had them.
    """
    data_dir = data_dir or build_settings({}).data_dir
    state = running_server(data_dir)
    choice = parse_model(model)
    if choice.name not in state.models:
        names = ", ".join(state.models)
        raise UsageError(
            f"MODEL: the server serves {names}, not {choice.name}; write NAME=PATH_OR_ID."
        )
    settings = ServeSettings(
        models=(choice,),
        revision=revision,
        dtype=state.dtype,
        backend=state.backend,
        kv_dtype=state.kv_dtype,
        deterministic=state.deterministic,
        max_model_len=state.max_model_len,
    )
    path = resolve_model(choice, settings)
    request = RolloutRequest(choice.name, None if path is None else str(path))
    status_path = _hand_in(Path(state.run_dir) / ROLLS_NAME, request)
    with (data_dir / STATE_NAME).open("rb") as held:
        _follow(status_path, lambda: _is_held(held), say)
    say(f"For its next start, name {model} on the server's command line or in its config file.")


def _hand_in(rolls: Path, request: RolloutRequest) -> Path:
    """Give the server a request; where it will tell how it goes."""
    path = rolls / f"{uuid.uuid4().hex}.request"
    try:
        write_whole(path, msgspec.json.encode(request))
    except OSError as error:
        raise CommandError(
            f"{rolls} can't be written: {error.strerror}. Run this as the user of the server."
        ) from None
    return path.with_suffix(".status")


def _follow(status_path: Path, is_running: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Tell the steps of a rollout until its end, or that of the server."""
    num_said = 0
    try:
        while True:
            was_running = is_running()  # before the file is read: what it says then is all
            status = _status(status_path)
            for line in status.said[num_said:]:
                say(line)
            num_said = len(status.said)
            if status.end == "failed":
                raise CommandError("The rollout did not reach all engines; see above.")
            if status.end:
                return
            if not was_running:
                raise ServerError("The server has ended, and the rollout with it.")
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise CommandError(
            "The server goes on with it; its log says how it ends. To stop it, end the process "
            "that starts with the new weights."
        ) from None


def _status(path: Path) -> RolloutStatus:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RolloutStatus)
    except FileNotFoundError:
        return RolloutStatus(())  # not taken yet
