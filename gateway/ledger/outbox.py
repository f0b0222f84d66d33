"""Settlements until the auth worker has acknowledged them: in memory, and on disk when it is away."""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import orjson

from gateway.errors import OverloadedError
from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.outbox")

FILE_NAME = "gateway-outbox.jsonl"
SPILL_AFTER_S = 0.05
"""A settlement acknowledged sooner never touches the disk; the auth worker's last report covers
the double death within that time."""
RESEND_AFTER_S = 5.0
_COMPACT_AFTER_LINES = 10_000
_FIELDS = Settle.__struct_fields__


class _Entry:
    """One settlement on its way."""

    __slots__ = ("is_on_disk", "sent_at", "settle")

    def __init__(self, settle: Settle, sent_at: float, *, is_on_disk: bool) -> None:
        self.settle = settle
        self.sent_at = sent_at
        self.is_on_disk = is_on_disk


class Outbox:
    """Sends each settlement until it is acknowledged, also across a restart of this process.

    Args:
        directory: Holds the file; made if missing. One gateway at a time.
        send: Sends a Settle to the auth worker; False when none is there.
        max_entries: Beyond it `check_room` refuses new requests.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: The file can't be opened, or another gateway holds it.
    """

    def __init__(
        self,
        directory: Path,
        send: Callable[[Settle], bool],
        max_entries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = directory / FILE_NAME
        self._send = send
        self._max_entries = max_entries
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._lines: list[bytes] = []
        self._spill: asyncio.Task[None] | None = None
        self._num_lines = 0
        self._has_failed = False
        self._lock = _lock_directory(directory)
        self._load()
        try:
            self._rewrite([entry.settle for entry in self._entries.values()])
        except OSError as error:
            raise ConfigurationError(
                f"PENSTOCK_DATA_DIR: cannot write {self._path}: {error.strerror}."
            ) from error

    def __len__(self) -> int:
        return len(self._entries)

    def check_room(self) -> None:
        """Whether a new request's settlement would have a place.

        Raises:
            OverloadedError: The auth worker has been away for too long, or the disk is full.
        """
        if len(self._entries) >= self._max_entries:
            raise OverloadedError(
                "Too many settlements wait for the auth worker; please try again later.",
                retry_after_s=RESEND_AFTER_S,
            )
        if self._has_failed and self._entries:
            raise OverloadedError(
                "Settlements can't be kept safe at the moment; please try again later.",
                retry_after_s=RESEND_AFTER_S,
            )

    def put(self, settle: Settle) -> None:
        """Send a settlement and keep it until `acknowledge`."""
        self._entries[settle.lease_id] = _Entry(settle, self._clock(), is_on_disk=False)
        self._send(settle)
        self._plan_spill()

    def acknowledge(self, lease_id: str) -> None:
        """The settlement is durable at the auth worker; idempotent."""
        entry = self._entries.pop(lease_id, None)
        if entry is not None and entry.is_on_disk:
            self._lines.append(orjson.dumps({"acknowledged": lease_id}) + b"\n")
            self._plan_spill()

    def refuse(self, request_id: str) -> None:
        """The auth worker can't book a request's settlement, now or later; it is dropped, loudly."""
        for lease_id, entry in list(self._entries.items()):
            if entry.settle.request_id == request_id:
                _logger.error("the settlement of lease %s was refused and is dropped", lease_id)
                self.acknowledge(lease_id)

    def resend_all(self) -> None:
        """Send everything again: an auth worker came, or came back."""
        now = self._clock()
        for entry in list(self._entries.values()):
            if not self._send(entry.settle):
                return
            entry.sent_at = now

    def resend_old(self) -> None:
        """Send what has waited long for its acknowledgement again; called every second or so."""
        now = self._clock()
        for entry in list(self._entries.values()):
            if now - entry.sent_at >= RESEND_AFTER_S:
                entry.sent_at = now
                if not self._send(entry.settle):
                    return
        if self._has_failed:
            self._plan_spill()

    async def close(self) -> None:
        """Write what is not acknowledged to disk and let the file go."""
        if self._spill is not None:
            # Not cancelled: a write that has begun goes on in its thread, and two would mix.
            await asyncio.gather(self._spill, return_exceptions=True)
        await self._write_out()
        self._lock.close()

    def _plan_spill(self) -> None:
        if self._spill is None or self._spill.done():
            self._spill = asyncio.get_running_loop().create_task(self._spill_later())

    async def _spill_later(self) -> None:
        await asyncio.sleep(SPILL_AFTER_S)
        # What comes while a write runs plans no other task, so it is this one's as well.
        while await self._write_out():
            pass

    async def _write_out(self) -> bool:
        """Append what the file lacks, in one fsynced write in a thread.

        Returns:
            Whether something was written; False also when that failed.
        """
        fresh = [entry for entry in self._entries.values() if not entry.is_on_disk]
        lines, self._lines = self._lines, []
        lines += [_settle_line(entry.settle) for entry in fresh]
        if not lines:
            return False
        for entry in fresh:
            entry.is_on_disk = True
        # A failed write may have left half a line, which the next one must not go on from.
        compact = self._has_failed or self._num_lines + len(lines) > _COMPACT_AFTER_LINES + 2 * len(
            self._entries
        )
        pending = [entry.settle for entry in self._entries.values()]
        try:
            if compact:
                await asyncio.to_thread(self._rewrite, pending)
            else:
                await asyncio.to_thread(self._append, lines)
        except OSError as error:
            for entry in fresh:
                entry.is_on_disk = False
            if not self._has_failed:
                _logger.error("cannot write the outbox %s: %s", self._path, error.strerror)
            self._has_failed = True
            return False
        self._has_failed = False
        return True

    def _append(self, lines: Iterable[bytes]) -> None:
        data = list(lines)
        # Buffered, because an unbuffered write may write less than it was given and say nothing.
        with self._path.open("ab") as file:
            file.write(b"".join(data))
            file.flush()
            os.fsync(file.fileno())
        self._num_lines += len(data)

    def _rewrite(self, settles: list[Settle]) -> None:
        fresh_path = self._path.with_suffix(".new")
        with fresh_path.open("wb") as file:
            file.write(b"".join(_settle_line(settle) for settle in settles))
            file.flush()
            os.fsync(file.fileno())
        fresh_path.replace(self._path)
        self._num_lines = len(settles)

    def _load(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigurationError(
                f"PENSTOCK_DATA_DIR: cannot read {self._path}: {error.strerror}."
            ) from error
        for number, line in enumerate(lines, start=1):
            try:
                self._load_line(orjson.loads(line))
            except (ValueError, TypeError, KeyError):
                # Also the half line of a crash while it was written, which was never relied on.
                _logger.warning("line %d of the outbox %s is damaged", number, self._path)

    def _load_line(self, value: dict[str, Any]) -> None:
        if "acknowledged" in value:
            self._entries.pop(value["acknowledged"], None)
            return
        fields = value["settle"]
        settle = Settle(**{name: fields[name] for name in _FIELDS})
        self._entries[settle.lease_id] = _Entry(settle, 0.0, is_on_disk=True)


def _settle_line(settle: Settle) -> bytes:
    fields = {name: getattr(settle, name) for name in _FIELDS}
    return orjson.dumps({"settle": fields}) + b"\n"


def _lock_directory(directory: Path) -> TextIO:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / f"{FILE_NAME}.lock").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"PENSTOCK_DATA_DIR: cannot write to {directory}: {error.strerror}."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigurationError(
            f"PENSTOCK_DATA_DIR: another gateway uses {directory}; give each its own folder."
        ) from error
    return lock
