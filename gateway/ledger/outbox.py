"""Settlements until the auth worker has acknowledged them, also across restarts of this process."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from gateway.errors import OverloadedError
from gateway.ledger.backlog import Backlog
from gateway.ledger.spool import Spool
from gateway.ledger.window import RESEND_AFTER_S, Window
from protocol.errors import ConfigurationError
from protocol.wire.messages import Settle

_logger = logging.getLogger("penstock.gateway.outbox")

SPILL_AFTER_S = 0.05
"""A settlement acknowledged sooner never touches the disk; the auth worker's last report covers
the double death within that time."""


class Outbox:
    """Sends each settlement until it is acknowledged, and keeps it on disk meanwhile.

    What earlier processes left goes the same way: up to a page of it from this gateway's file, the
    rest from backlog files, page by page.

    Args:
        directory: Holds the files; made if missing. One gateway at a time.
        send: Sends a Settle to the auth worker; False when none is there.
        max_entries: From here on `check_room` refuses new requests.
        clock: Monotonic seconds.
        adopt: Moves what other gateways left into backlog files of this folder, may raise
            OSError; called once the folder is locked.

    Raises:
        ConfigurationError: The files can't be used, or another gateway has them.
    """

    def __init__(
        self,
        directory: Path,
        send: Callable[[Settle], bool],
        max_entries: int,
        clock: Callable[[], float] = time.monotonic,
        adopt: Callable[[], None] | None = None,
    ) -> None:
        self._max_entries = max_entries
        self._window = Window(send, clock)
        self._spill: asyncio.Task[None] | None = None
        self._page: set[str] = set()
        self._spool = Spool(directory, clock)
        try:
            if adopt is not None:
                adopt()
            for settle in self._spool.load():
                self._window.add(settle)
            self._backlog = Backlog(directory)
            self._take_page(self._backlog.turn())
        except OSError as error:
            self._spool.close()
            raise ConfigurationError(
                f"PENSTOCK_DATA_DIR: cannot use the outbox in {directory}: {error.strerror}."
            ) from error

    def __len__(self) -> int:
        """Settlements that are not acknowledged, in memory and in backlog files."""
        return len(self._spool) + len(self._page) + len(self._backlog)

    @property
    def can_keep(self) -> bool:
        """Whether a new request's settlement has a place: room, and a disk that takes it."""
        return not self._spool.has_failed and len(self) < self._max_entries

    def check_room(self) -> None:
        """Refuse a new request whose settlement would have no place.

        Raises:
            OverloadedError: The auth worker has been away for too long, or the disk is full.
        """
        if len(self) >= self._max_entries:
            raise OverloadedError(
                f"{len(self)} settlements wait for the auth worker, {self._max_entries} may "
                "(PENSTOCK_MAX_OUTBOX); please try again when it has booked some.",
                retry_after_s=RESEND_AFTER_S,
            )
        if self._spool.has_failed:
            raise OverloadedError(
                "The disk of this server takes no settlements at the moment (PENSTOCK_DATA_DIR); "
                "please try again when it has room.",
                retry_after_s=RESEND_AFTER_S,
            )

    def put(self, settle: Settle) -> None:
        """Send a settlement, in its turn, and keep it until `acknowledge`."""
        self._spool.add(settle)
        self._window.add(settle)
        self._plan_spill()

    def acknowledge(self, lease_id: str) -> None:
        """The settlement is durable at the auth worker; idempotent."""
        was_paged = lease_id in self._page
        self._page.discard(lease_id)
        if self._spool.acknowledge(lease_id) or (was_paged and not self._page):
            self._plan_spill()
        self._window.acknowledge(lease_id)

    def refuse(self, request_id: str) -> None:
        """The auth worker can't book a settlement, now or later; it is logged and dropped."""
        for lease_id in self._window.leases_of(request_id):
            _logger.error("the settlement of lease %s was refused and is dropped", lease_id)
            self.acknowledge(lease_id)

    def resend_all(self) -> None:
        """An auth worker came, or came back: what is on the wire goes again."""
        self._window.resend_all()

    def resend_old(self) -> None:
        """Send again what was lost, and check the disk; called every second or so."""
        self._window.resend_lost()
        if self._spool.is_trial_due or self._can_turn:
            self._plan_spill()

    async def close(self) -> None:
        """Write what is not acknowledged to disk and let the files go."""
        if self._spill is not None:
            # Not cancelled: a write that has begun goes on in its thread, and two would mix.
            await asyncio.gather(self._spill, return_exceptions=True)
        await self._spool.write_out()
        self._spool.close()

    def _plan_spill(self) -> None:
        if self._spill is None or self._spill.done():
            self._spill = asyncio.get_running_loop().create_task(self._spill_later())

    async def _spill_later(self) -> None:
        is_over = False
        while not is_over:
            await asyncio.sleep(SPILL_AFTER_S)
            # What comes meanwhile plans no other task, so it is this one's as well.
            while await self._spool.write_out(SPILL_AFTER_S) or await self._turn_page():
                pass
            is_over = not self._spool.will_write

    @property
    def _can_turn(self) -> bool:
        """Whether the page of the backlog is booked and another one, or its end, follows."""
        return not self._page and not self._backlog.is_done

    async def _turn_page(self) -> bool:
        """Read on in the backlog once its page is booked; whether there was more."""
        if not self._can_turn:
            return False
        try:
            settles = await asyncio.to_thread(self._backlog.turn)
        except OSError as error:
            _logger.error("cannot read further in a backlog of the outbox: %s", error.strerror)
            return False
        self._take_page(settles)
        return bool(settles)

    def _take_page(self, settles: list[Settle]) -> None:
        self._page.update(settle.lease_id for settle in settles)
        for settle in settles:
            self._window.add(settle)
