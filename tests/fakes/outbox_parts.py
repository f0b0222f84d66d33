"""Settlements, a way to an auth worker that a test opens and closes, and a disk that fails."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from gateway.ledger.outbox import Outbox
from protocol.wire.messages import Settle


def settle(number: int = 1, completion_tokens: int = 2) -> Settle:
    return Settle(
        lease_id=f"lease-{number}",
        request_id=f"request-{number}",
        prompt_tokens=number,
        completion_tokens=completion_tokens,
        outcome="aborted",
    )


class Post:
    """The way to an auth worker, and the time."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[str] = []
        self.messages: list[Settle] = []
        self.now = 100.0

    def send(self, message: Settle) -> bool:
        if self.is_open:
            self.sent.append(message.lease_id)
            self.messages.append(message)
        return self.is_open

    def clock(self) -> float:
        return self.now

    def outbox(self, directory: Path, max_entries: int = 10) -> Outbox:
        return Outbox(directory, self.send, max_entries, self.clock)


def _full(*_arguments: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def full_disk() -> Iterator[None]:
    """Nothing can be written, whatever the file; what is there can be cut and read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", _full)
        patch.setattr(os, "pwrite", _full)
        patch.setattr(os, "fsync", _full)
        yield


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Nothing can be opened; what is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
