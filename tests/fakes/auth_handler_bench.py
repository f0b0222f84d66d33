"""An auth worker's handler on a real store, without sockets and threads of its own."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from auth_worker.administration.key_administration import Administration
from auth_worker.administration.resource_administration import ResourceAdministration
from auth_worker.decisions.authority import Authority, Rules
from auth_worker.errors import StoreError
from auth_worker.outbound.targets import TargetGuard
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.prices import Price
from auth_worker.principals.webhooks import StoredWebhook
from auth_worker.records.operations import AddKey, AuditEntry
from auth_worker.serving.handler import AuthHandler
from auth_worker.serving.ledger_desk import LedgerDesk
from auth_worker.storage.committer import Committer, Delivery
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import Message
from tests.fakes.auth_parts import FakeClock, admin_key, stored_key
from tests.fakes.executors import AtOnce

MAX_BACKLOG = 50
_AUDIT = AuditEntry(0, "", "key_created", "x")


class AuthHandlerBench:
    """A handler on a real store; commits happen when the test says so."""

    def __init__(
        self,
        directory: Path,
        age_s: Callable[[], float] = lambda: 0.0,
        *,
        limits: Iterable[Limit] = (),
        prices: Iterable[Price] = (),
        clock: FakeClock | None = None,
        webhooks: dict[str, StoredWebhook] | None = None,
        targets: TargetGuard | None = None,
        reports_thread: Executor | None = None,
        lists_thread: Executor | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.store = SqliteStore(directory, clock=self.clock)
        self.store.apply([AddKey(admin_key(), _AUDIT), AddKey(stored_key(), _AUDIT)])
        self.sent: list[tuple[str, Message]] = []
        self.lost: list[StoreError] = []
        self._deliveries: list[Delivery] = []
        self.committer = Committer(
            self.store,
            deliver=self._deliveries.append,
            on_fatal=self.lost.append,
            max_backlog=MAX_BACKLOG,
        )
        snapshot = self.store.load(recent_since_ms=0)
        self.authority = authority = Authority(
            epoch=self.store.epoch,
            snapshot=replace(snapshot, limits=tuple(limits), prices=tuple(prices)),
            rules=Rules(),
            clock=self.clock,
            emit=self.committer.submit,
            commit=lambda operation, on_done: self.handler.commit(operation, on_done),
        )
        numbers = count(1)
        self.administration = Administration(
            authority.keys, clock=self.clock, new_key_id=lambda: f"key_{next(numbers)}"
        )
        self.resources = ResourceAdministration(
            authority.keys,
            authority.limits,
            authority.prices,
            clock=self.clock,
            new_id=lambda prefix: f"{prefix}_{next(numbers)}",
            webhooks=webhooks,
            targets=targets,
        )
        self.handler = AuthHandler(
            authority=authority,
            administration=self.administration,
            resources=self.resources,
            committer=self.committer,
            ledger=LedgerDesk(
                self.store.database.reading,
                reports_thread or AtOnce(),
                lists_thread or AtOnce(),
                lambda function, *args: function(*args),
                self.clock,
            ),
            clock=self.clock,
            send=lambda gateway_id, message: self.sent.append((gateway_id, message)),
            age_s=age_s,
        )

    def ask(self, command: Any) -> Message | None:
        """The answer that comes without a commit."""
        self.sent.clear()
        self.handler.on_command("gateway-1", command)
        return self.sent[0][1] if self.sent else None

    def commit(self) -> Sequence[Message]:
        """Write everything in the commit thread, then deliver as the I/O thread does."""
        self.sent.clear()
        self.committer.start()
        assert self.committer.close(10.0)
        for delivery in self._deliveries:
            self.handler.deliver(delivery)
        return [message for _, message in self.sent]

    def write(self) -> Sequence[Message]:
        """Write everything here and now, and deliver; more may come afterwards."""
        self.sent.clear()
        self.committer._closing = True  # so that it doesn't wait for more
        self.committer._run()
        self.committer._closing = False
        deliveries, self._deliveries[:] = list(self._deliveries), []
        for delivery in deliveries:
            self.handler.deliver(delivery)
        return [message for _, message in self.sent]
