"""A real auth worker's decisions and store behind a gateway, in the test's process."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from auth_worker.administration.key_administration import Administration
from auth_worker.administration.resource_administration import ResourceAdministration
from auth_worker.clock import Clock, SystemClock
from auth_worker.decisions.authority import Authority, Rules
from auth_worker.principals.keys import StoredKey
from auth_worker.principals.limit_rules import Limit
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.prices import Price
from auth_worker.records.operations import AddKey, AuditEntry
from auth_worker.serving.handler import AuthHandler
from auth_worker.serving.ledger_desk import LedgerDesk
from auth_worker.storage.committer import Committer
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import AuthCommand
from tests.fakes.executors import AtOnce
from tests.fakes.fake_workers import FakeAuth
from tests.fakes.running_gateway import RunningGateway


class DecidingAuth(FakeAuth):
    """Decides, commits and answers as an auth worker does."""

    def __init__(
        self,
        directory: Path,
        *keys: StoredKey,
        limits: Iterable[Limit] = (),
        prices: Iterable[Price] = (),
        users: Iterable[StoredUser] = (),
        teams: Iterable[StoredTeam] = (),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(directory, allow_anonymous=False)
        clock = clock or SystemClock()
        self.store = SqliteStore(directory / "auth-data", clock=clock)
        self.store.apply([AddKey(key, AuditEntry(0, "", "key_created", "x")) for key in keys])
        self._committer = Committer(
            self.store,
            deliver=lambda delivery: self.worker.call_soon(self.handler.deliver, delivery),
            on_fatal=lambda error: None,
        )
        snapshot = replace(
            self.store.load(recent_since_ms=0),
            limits=tuple(limits),
            prices=tuple(prices),
            users=tuple(users),
            teams=tuple(teams),
        )
        self.authority = Authority(
            epoch=self.store.epoch,
            snapshot=snapshot,
            rules=Rules(),
            clock=clock,
            emit=self._committer.submit,
            commit=lambda operation, on_done: self.handler.commit(operation, on_done),
        )
        self.handler = AuthHandler(
            authority=self.authority,
            administration=Administration(
                self.authority.keys, clock=clock, new_key_id=lambda: "key_new"
            ),
            resources=ResourceAdministration(
                self.authority.keys,
                self.authority.limits,
                self.authority.prices,
                clock=clock,
                new_id=lambda kind: f"{kind}_new",
            ),
            committer=self._committer,
            ledger=LedgerDesk(
                self.store.database.reading,
                AtOnce(),
                AtOnce(),
                lambda function, *args: function(*args),
                clock,
            ),
            clock=clock,
            send=lambda gateway_id, message: self.worker.send(gateway_id, message),
        )

    def start(self) -> None:
        self._committer.start()
        super().start()

    def answer(self, command: AuthCommand) -> None:
        self.handler.on_command(self.gateway_id, command)

    async def stop(self) -> None:
        await super().stop()
        await asyncio.to_thread(self._committer.close, 10.0)
        self.store.close()


async def deciding_auth(gateway: RunningGateway, auth: DecidingAuth) -> DecidingAuth:
    """The same, connected."""
    gateway.workers.append(auth)
    auth.start()
    await gateway._arrival(auth)
    return auth
