"""Auth workers that come and go under the load of a gateway, and what they have promised.

The gateway's side is the real link to auth workers; the workers are real processes on SQLite or on
PostgreSQL, where several stand by.
"""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from auth_worker.auditing.audit_check import CheckedLog, check_log
from auth_worker.config import database_url
from auth_worker.principals.keys import digest_of
from auth_worker.storage.pending_sums import load_sums
from auth_worker.storage.reading import reader
from gateway.errors import DeniedError, RemoteFailureError, WorkerUnavailableError
from gateway.workers.auth import AuthLink, AuthNews
from protocol.errors import ErrorCode
from protocol.wire.codec import auth_event_decoder
from protocol.wire.messages import (
    Actor,
    AuthEvent,
    Authorize,
    ChangeKeyStatus,
    KeySettings,
    KeysFound,
    LeaseReport,
    LimitSettings,
    MakeKey,
    MakeResource,
    ResourcesFound,
    Settle,
)
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer
from tests.fakes.fork_server import AUTH_WORKER, Forked

ADMIN_SECRET = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"
USER_SECRET = "psk-user-of-the-auth-deployment-0123456789"
WAIT_S = 60.0
ANSWER_S = 1.0
RESEND_S = 0.2
ADMIN = Actor(key_id="key_environment", address="192.0.2.1")


class DatabaseProxy:
    """Loopback TCP in front of PostgreSQL's Unix socket; it can stop passing anything on.

    What is held back is passed on when it heals: a partition delivers late, it doesn't drop.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Hold everything back, without closing a connection."""
        self._flows.clear()

    def heal(self) -> None:
        """Pass everything on."""
        self._flows.set()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        except OSError:  # no server there
            writer.transport.abort()
            return
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


class Promises:
    """What was acknowledged, and so must be there whatever happens."""

    def __init__(self) -> None:
        self.settled: dict[str, int] = {}  # lease id → completion tokens
        self.keys: set[str] = set()  # key ids
        self.suspended: set[str] = set()
        self.epochs: list[int] = []  # of every grant, in the order in which it was taken


class AuthHarness:
    """One gateway's link to auth workers, the workers, and clients that use them.

    Args:
        folder: Short, for sockets; each worker has a data directory in it, or SQLite's one.
        answer_s: How long a client waits for an answer. On a database that is shared the next
            epoch ends whoever waits for the one before, so a long time holds nothing up there.
        settings: For all workers.
    """

    def __init__(self, folder: Path, *, answer_s: float = ANSWER_S, **settings: str) -> None:
        self.folder = folder
        self._answer_s = answer_s
        self.promises = Promises()
        self.workers: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self.peers: list[Peer] = []
        self._settings = settings
        self._acknowledged: dict[str, asyncio.Event] = {}
        self._ready = asyncio.Condition()
        self._clients: list[asyncio.Task[None]] = []
        self._is_over = False
        self._num_asked = 0
        self._server: RoleServer[AuthEvent] = RoleServer(
            "auth",
            f"ipc://{folder}/auth",
            auth_event_decoder(),
            instance_id="gateway-test",
            heartbeat_interval_s=0.2,
        )
        self.link = AuthLink(
            self._server,
            timeout_s=answer_s,
            require_keys=True,
            news=AuthNews(
                on_settled=self._on_settled,
                on_settle_refused=lambda _: None,
                on_ready=lambda: None,
                on_orphans_noted=lambda _: None,
            ),
        )
        self._server.start(
            asyncio.get_running_loop(),
            on_event=lambda peer, event: self.link.on_event(peer, event),
            on_peer=self._on_peer,
        )

    # The workers.

    def start_worker(self, name: str, **settings: str) -> subprocess.Popen[bytes] | Forked:
        """Start one, or one anew under the same name."""
        data_dir = self.folder / (name if "PENSTOCK_DATABASE_URL" in self._settings else "data")
        environ = {
            **os.environ,
            "PENSTOCK_AUTH_ENDPOINT": f"ipc://{self.folder}/auth",
            "PENSTOCK_DATA_DIR": str(data_dir),
            "PENSTOCK_ADMIN_KEY": ADMIN_SECRET,
            "PENSTOCK_DRAIN_TIMEOUT_S": "5",
            "PENSTOCK_LOG_FORMAT": "human",
            **self._settings,
            **settings,
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            if "PYTEST_VERSION" in os.environ:
                self.workers[name] = Forked(
                    "auth_worker", preloaded=AUTH_WORKER, environ=environ, stderr=log
                )
            else:  # how long a start takes is measured
                self.workers[name] = subprocess.Popen(
                    [sys.executable, "-m", "auth_worker"], env=environ, stderr=log
                )
        return self.workers[name]

    def log_of(self, name: str) -> str:
        """What a worker has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def epoch(self) -> int:
        """Of the worker that the gateway asks; 0 while there is none."""
        peer = self.link._active()
        return 0 if peer is None or peer.auth is None else peer.auth.epoch

    def active(self) -> str:
        """The name of the worker that holds the PostgreSQL database and that the gateway asks."""
        with reader(self.folder / "data", database_url(self._settings))() as connection:
            ((epoch, holder),) = _rows(connection, "SELECT epoch, holder FROM authority")
        for name, worker in self.workers.items():
            if epoch == self.epoch() and holder.endswith(f":{worker.pid}"):
                return name
        return ""

    async def until_active(self, *, after: int = 0) -> str:
        """Wait for an active worker of a later epoch; its name."""
        await self.until(lambda: self.epoch() > after and self.active(), "a worker is active")
        return self.active()

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait for something, and look whenever a worker says anything, or a little later."""
        deadline = time.monotonic() + WAIT_S
        while not holds():
            for client in self._clients:
                if client.done():
                    client.result()
            if time.monotonic() >= deadline:
                logs = "\n".join(
                    f"--- {name}\n{self.log_of(name)[-3000:]}" for name in self.workers
                )
                raise AssertionError(f"waited in vain until {what}\n{logs}")
            async with self._ready:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ready.wait(), 0.05)

    async def ended(self, name: str) -> int:
        """The exit code of a worker that ends."""
        return await asyncio.to_thread(self.workers[name].wait, WAIT_S)

    async def kill(self, name: str) -> None:
        """kill -9, and gone."""
        self.workers[name].kill()
        await self.ended(name)

    # The clients.

    async def create_user(self) -> str:
        """The key that all clients use; its id."""
        made = await self.link.administer(
            MakeKey(
                request_id="user",
                actor=ADMIN,
                key_digest=digest_of(USER_SECRET),
                hint="h",
                settings=KeySettings(name="user", role="service"),
            ),
            KeysFound,
        )
        return made.keys[0].key_id

    async def create_quota(self, key_id: str, num_requests: int) -> None:
        """A hard limit on all the requests that a key will ever make."""
        await self.link.administer(
            MakeResource(
                request_id="quota",
                actor=ADMIN,
                kind="limit",
                settings=LimitSettings(
                    name="quota",
                    holder="key",
                    holder_id=key_id,
                    measure="requests",
                    amount=num_requests,
                    window="total",
                ),
            ),
            ResourcesFound,
        )

    async def until_quota_is_spent(self) -> None:
        """Wait until every client was refused for good."""
        await asyncio.wait_for(asyncio.gather(*self._clients), 2 * WAIT_S)

    def begin_load(self, num_clients: int, seed: int) -> None:
        """Clients that ask, settle until it is acknowledged, and make and suspend keys."""
        self._clients = [
            asyncio.create_task(self._client(random.Random(f"{seed}:{number}")))
            for number in range(num_clients)
        ]

    async def end_load(self) -> None:
        """Let every client end its request."""
        self._is_over = True
        await asyncio.wait_for(asyncio.gather(*self._clients), WAIT_S)

    async def close(self) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for name, worker in self.workers.items():
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                await self.kill(name)
        self._server.close()

    async def _client(self, chance: random.Random) -> None:
        while not self._is_over:
            self._num_asked += 1
            number = self._num_asked
            if chance.random() < 0.05:
                await self._administer(number)
                continue
            ask = Authorize(
                request_id=f"req-{number}",
                key_digest=digest_of(USER_SECRET),
                endpoint="/v1/chat/completions",
                model="demo",
                prompt_tokens=10,
                completion_tokens=50,
                wait_s=self._answer_s,
                scope="chat.completions",
            )
            try:
                granted = await self.link.authorize(ask)
            except (WorkerUnavailableError, DeniedError) as error:
                if error.code is ErrorCode.INSUFFICIENT_QUOTA:
                    return
                # A rate: running requests, or those that were lost with an epoch, hold the rest.
                if error.code not in (
                    ErrorCode.WORKER_UNAVAILABLE,
                    ErrorCode.RATE_LIMIT_EXCEEDED,
                ):
                    raise
                await asyncio.sleep(0.02)
                continue
            self.promises.epochs.append(int(granted.lease_id.split(":")[1], 16))
            if chance.random() < 0.3:
                self.link.renew((LeaseReport(granted.lease_id, 10, 1),))
                await asyncio.sleep(chance.random() * 0.05)
            await self._settle(granted.lease_id, f"req-{number}", chance.randrange(50))

    async def _settle(self, lease_id: str, request_id: str, num_tokens: int) -> None:
        """As the gateway's outbox does: again and again until it is acknowledged."""
        acknowledged = self._acknowledged[lease_id] = asyncio.Event()
        settle = Settle(
            lease_id=lease_id,
            request_id=request_id,
            prompt_tokens=10,
            completion_tokens=num_tokens,
        )
        while not acknowledged.is_set():
            self.link.settle(settle)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(acknowledged.wait(), RESEND_S)
        del self._acknowledged[lease_id]
        self.promises.settled[lease_id] = num_tokens

    async def _administer(self, number: int) -> None:
        make = MakeKey(
            request_id=f"make-{number}",
            actor=ADMIN,
            key_digest=secrets.token_bytes(32),
            hint="h",
            settings=KeySettings(name=f"key {number}"),
        )
        with contextlib.suppress(WorkerUnavailableError, RemoteFailureError):
            made = await self.link.administer(make, KeysFound)
            key_id = made.keys[0].key_id
            self.promises.keys.add(key_id)
            await self.link.administer(
                ChangeKeyStatus(
                    request_id=f"suspend-{number}", actor=ADMIN, key_id=key_id, action="suspend"
                ),
                KeysFound,
            )
            self.promises.suspended.add(key_id)

    # What is in the database.

    def check_promises(self) -> CheckedLog:
        """Everything that was acknowledged is there, once; the chain of the audit log holds."""
        reading = reader(self.folder / "data", database_url(self._settings))
        promises = self.promises
        with reading() as connection:
            ledger = dict(_rows(connection, "SELECT lease_id, completion_tokens FROM ledger"))
            keys = dict(_rows(connection, "SELECT key_id, suspended_at FROM keys"))
            noted = set(_rows(connection, "SELECT action, subject FROM audit_log"))
            used = "SELECT count(*) FROM ledger WHERE key_id <> '' AND outcome <> 'unused'"
            total = _rows(connection, used)[0][0]
            by_key = _rows(connection, "SELECT coalesce(sum(total_requests), 0) FROM keys")[0][0]
            waiting = sum(amounts[0] for amounts in load_sums(connection).sums.values())
        lost = {lease for lease, n in promises.settled.items() if ledger.get(lease) != n}
        assert not lost, f"{len(lost)} acknowledged settlements are not in the ledger: {lost}"
        assert promises.keys <= keys.keys(), "an acknowledged key is lost"
        assert all(keys[key_id] is not None for key_id in promises.suspended)
        assert {("key_created", key_id) for key_id in promises.keys} <= noted
        assert {("key_suspended", key_id) for key_id in promises.suspended} <= noted
        assert total == int(by_key) + waiting, "the totals of keys are not the sums of the ledger"
        # Once a later epoch has granted, no earlier one has.
        assert promises.epochs == sorted(promises.epochs)
        checked = check_log(reading)
        assert checked.trouble is None, checked
        return checked

    async def until_no_lease_is_open(self) -> None:
        """Grants that never reached a client expire."""
        reading = reader(self.folder / "data", database_url(self._settings))

        def is_empty() -> bool:
            with reading() as connection:
                return not _rows(connection, "SELECT lease_id FROM leases")

        await self.until(is_empty, "no lease is open")

    # What the link and the socket call.

    def _on_settled(self, lease_id: str) -> None:
        if lease_id in self._acknowledged:
            self._acknowledged[lease_id].set()

    def _on_peer(self, event: PeerEvent) -> None:
        if event.kind == "ready":
            self.link.on_peer_ready(event.peer)
        elif event.kind == "lost":
            self.link.on_peer_lost(event.peer)
        self.peers = list(self._server.peers())
        task = asyncio.get_running_loop().create_task(self._notify())
        self._clients.append(task)

    async def _notify(self) -> None:
        async with self._ready:
            self._ready.notify_all()


def _rows(connection: Connection, query: str) -> list[Any]:
    return [tuple(row) for row in connection.exec_driver_sql(query)]
