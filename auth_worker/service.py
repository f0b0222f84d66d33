"""Puts the auth worker together: store, first admin, authority, commit thread, worker loop."""

import gc
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from auth_worker.administration.first_admin import ensure_admin
from auth_worker.administration.key_administration import Administration
from auth_worker.administration.resource_administration import ResourceAdministration
from auth_worker.auditing.audit_check import BackgroundCheck, CheckedLog
from auth_worker.clock import Clock
from auth_worker.config import AuthSettings
from auth_worker.decisions.authority import Authority
from auth_worker.decisions.restoring import SPAN_S
from auth_worker.decisions.windows import first_without_zone
from auth_worker.errors import StoreError
from auth_worker.exit_codes import EXIT_FAILED, exit_code_of
from auth_worker.outbound.exchange import Exchanger
from auth_worker.outbound.targets import TargetGuard
from auth_worker.principals.key_rules import networks_of
from auth_worker.principals.limit_rules import Limit
from auth_worker.records.audit_signing import AuditSigner
from auth_worker.records.operations import Flush, Operation, Snapshot
from auth_worker.serving.gate import Gate
from auth_worker.serving.handler import AuthHandler
from auth_worker.serving.housekeeping import Housekeeping
from auth_worker.serving.ledger_desk import LedgerDesk
from auth_worker.serving.ticker import Ticker
from auth_worker.serving.webhook_desk import (
    MAX_ANSWER_BYTES,
    NUM_THREADS,
    TIMEOUT_S,
    Post,
    WebhookDesk,
)
from auth_worker.storage.audit_key import KEY_NAME, NOTES_NAME, CheckpointNotes, load_signer
from auth_worker.storage.backlog import OnDone
from auth_worker.storage.committer import Committer, Delivery
from auth_worker.storage.database_url import DatabaseUrl
from auth_worker.storage.durable_file import make_folder
from auth_worker.storage.lease_keeper import LeaseKeeper
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_store import SqliteStore
from auth_worker.storage.store import Store
from auth_worker.tokens.checker import TokenChecker
from auth_worker.tokens.key_source import KeySource, fetch_keys
from auth_worker.tokens.verifier import TokenVerifier
from protocol.errors import ConfigurationError
from protocol.runtime import collector
from protocol.wire.codec import auth_command_decoder
from protocol.wire.endpoints import Endpoint
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages import AuthCommand, AuthOffer, Message
from protocol.wire.worker import Worker, WorkerSettings

EXPIRY_INTERVAL_S = 1.0
THREAD_SWITCH_INTERVAL_S = 0.0005
"""A decision must not wait Python's default 5 ms for the commit thread to release the GIL."""

GC_THRESHOLDS = (10_000, 10, 100)
"""Python's default of 700 is reached by 64 requests under way, which hold a dozen objects each."""

SETTLEMENT_PATIENCE_S = 5.0
"""Beyond the drain of a gateway that was told to stop together with this process."""

RENEWAL_INTERVAL_S = 0.4
"""Between two looks at whether the lease on the database wants a transaction to live on."""

LOCK_PATIENCE_S = 5.0
"""Its predecessor ends within two seconds of a parent that was killed."""

if TYPE_CHECKING:
    from auth_worker.storage.postgres_database import PostgresDatabase

_logger = logging.getLogger("penstock.auth")


def new_id(prefix: str) -> str:
    """An id: its prefix, `_` and 16 random hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(8)}"


def new_key_id() -> str:
    """An id for a key."""
    return new_id("key")


def run(
    settings: AuthSettings,
    *,
    endpoints: Sequence[Endpoint],
    security: ClientSecurity | None,
    clock: Clock,
    build: str,
) -> int:
    """Serve until told to stop; on PostgreSQL, stand by as long as another worker is active.

    Returns:
        The exit code: 0 clean, 1 refused, otherwise one of `exit_codes`.

    Raises:
        ConfigurationError: PENSTOCK_ADMIN_KEY can't be used.
        StoreError: The database is held by another auth worker, too new, foreign, lost or damaged,
            or the disk is full.
    """
    gate = Gate(lambda gateway_id, message: worker.send(gateway_id, message))
    worker: Worker[AuthCommand] = Worker(
        role="auth",
        decoder=auth_command_decoder(),
        handler=gate,
        endpoints=endpoints,
        security=security,
        settings=WorkerSettings(
            drain_timeout_s=settings.drain_timeout_s,
            outlast_gateways_s=settings.drain_timeout_s + SETTLEMENT_PATIENCE_S,
        ),
        build=build,
        metrics=gate,
        ready_file=settings.ready_file,
    )
    make_folder(settings.data_dir)
    signer = load_signer(settings.audit_key_file or settings.data_dir / KEY_NAME)
    notes = CheckpointNotes(settings.data_dir / NOTES_NAME)

    def serve(
        store: SqlStore, keeper: LeaseKeeper | None = None, held: Snapshot | None = None
    ) -> int:
        with _collector_paused():
            snapshot = _ensure_admin(store, held or _load(store, clock), settings, clock)
            require_time_zones(snapshot.limits)
            service = AuthService(
                store,
                snapshot,
                settings,
                worker=worker,
                gate=gate,
                clock=clock,
                signer=signer,
                notes=notes,
            )
        if keeper is not None:
            keeper.stop()
        return service.run()

    if settings.database_url is not None:
        open_store = partial(SqlStore, clock=clock, signer=signer, on_checkpoint=notes.add)
        return _run_shared(settings, settings.database_url, worker, serve, open_store, clock)
    with closing(
        SqliteStore(
            settings.data_dir,
            clock=clock,
            lock_patience_s=LOCK_PATIENCE_S,
            signer=signer,
            on_checkpoint=notes.add,
        )
    ) as store:
        worker.start()
        return serve(store)


def _run_shared(
    settings: AuthSettings,
    url: DatabaseUrl,
    worker: Worker[AuthCommand],
    serve: Callable[[SqlStore, LeaseKeeper, Snapshot | None], int],
    open_store: "Callable[[PostgresDatabase], SqlStore]",
    clock: Clock,
) -> int:
    """On a database that several workers share: heard by gateways first, then active."""
    # The driver is large, and most auth workers never talk to it.
    from auth_worker.storage.postgres_database import MARKER_NAME, PostgresDatabase
    from auth_worker.storage.standby import read_ahead, stand_by

    calm_collector()  # It may stand by for months.
    if url.is_plaintext:
        _logger.warning("%s is talked to in plain text: its address says sslmode=disable", url)
    with closing(PostgresDatabase(url, marker=settings.data_dir / MARKER_NAME)) as database:
        worker.start()
        try:
            taken = stand_by(
                database,
                open_store=open_store,
                is_over=lambda: worker.is_finished,
                sleep=time.sleep,
                on_state=worker.stand_by,
                read=lambda: read_ahead(database, recent_since_ms=_recent_since_ms(clock)),
            )
            if taken is None:
                return worker.wait()
            store, held = taken
            with closing(store), LeaseKeeper(store) as keeper:
                return serve(store, keeper, held)
        except (ConfigurationError, StoreError) as error:
            worker.stop(error.message, exit_code_of(error))
            raise


def _ensure_admin(
    store: SqlStore, snapshot: Snapshot, settings: AuthSettings, clock: Clock
) -> Snapshot:
    """What the store, of which this is a snapshot, holds once somebody can administer."""
    done = ensure_admin(
        store,
        snapshot,
        given=settings.admin_key,
        directory=settings.data_dir,
        clock=clock,
        random_text=secrets.token_urlsafe,
        new_key_id=new_key_id,
    )
    _logger.info("epoch %d of %s", store.epoch, store.database)
    return _load(store, clock) if done.has_changed else snapshot


def require_time_zones(limits: Iterable[Limit]) -> None:
    """Refuse to decide by calendars that can't be read: nobody knows when their windows begin.

    Raises:
        ConfigurationError: A limit has a time zone that this machine doesn't know.
    """
    limit = first_without_zone(limits)
    if limit is not None:
        raise ConfigurationError(
            f"The time zone {limit.window.time_zone} of '{limit.name}' ({limit.limit_id}) is not"
            " known on this machine. Install the system's time zones (Debian: tzdata, and"
            " tzdata-legacy for older names such as US/Pacific)."
        )


def token_checker(settings: AuthSettings, clock: Clock) -> TokenChecker | None:
    """What verifies bearer tokens; None when the settings accept none."""
    rules = settings.tokens
    if not rules.are_on:
        return None
    source: KeySource | None = None
    if rules.secret is None:
        exchanger = Exchanger(TargetGuard(networks_of(settings.internal_targets)))
        source = KeySource(lambda: fetch_keys(rules, exchanger), rules.refresh_s)
    return TokenChecker(TokenVerifier(rules), source, clock)


def _poster(exchanger: Exchanger) -> Post:
    return lambda url, headers, body: exchanger.exchange(
        "POST", url, timeout_s=TIMEOUT_S, max_bytes=MAX_ANSWER_BYTES, headers=headers, body=body
    )


def _load(store: Store, clock: Clock) -> Snapshot:
    return store.load(recent_since_ms=_recent_since_ms(clock))


def _recent_since_ms(clock: Clock) -> int:
    """From when on settlements count in windows of a minute."""
    return int((clock.wall_s() - SPAN_S) * 1000)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """While very many objects are made that all stay: looking at them takes a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def calm_collector() -> None:
    """Keep the garbage collector from what lives as long as the process, keys above all.

    A full collection looks at every object while all decisions wait; with the modules alone that
    takes as long as thousands of decisions. What is counted for a key that is used from now on
    stays, too, so they become rare: requests under way alone begin none, and are seldom part of a
    cycle when they end.
    """
    collector.settle(GC_THRESHOLDS)


class AuthService:
    """The parts of one auth worker and the threads between them.

    The I/O thread decides and talks, the commit thread writes, the ticker asks for expired leases.
    """

    def __init__(
        self,
        store: SqlStore,
        snapshot: Snapshot,
        settings: AuthSettings,
        *,
        worker: Worker[AuthCommand],
        gate: Gate,
        clock: Clock,
        signer: AuditSigner | None,
        notes: CheckpointNotes,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._gate = gate
        self._database = store.database
        self._offer = AuthOffer(
            epoch=store.epoch,
            allow_anonymous=settings.rules.allow_anonymous,
            database_id=store.database.database_id,
        )
        self._committer = Committer(store, deliver=self._deliver, on_fatal=self._on_fatal)
        authority = Authority(
            epoch=store.epoch,
            snapshot=snapshot,
            rules=settings.rules,
            clock=clock,
            emit=self._committer.submit,
            commit=self._commit,
        )
        self._checker = token_checker(settings, clock)
        self._authority = authority
        targets = TargetGuard(networks_of(settings.internal_targets))
        webhooks = {hook.webhook_id: hook for hook in snapshot.webhooks}
        self._webhook_threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="webhook")
        self._webhooks = WebhookDesk(
            webhooks,
            _poster(Exchanger(targets)),
            self._webhook_threads,
            submit=self._commit,
            clock=clock,
            call_soon=self._call_soon,
        )
        self._reports_thread = ThreadPoolExecutor(1, thread_name_prefix="reports")
        self._lists_thread = ThreadPoolExecutor(1, thread_name_prefix="lists")
        self._handler = AuthHandler(
            authority=authority,
            administration=Administration(authority.keys, clock=clock, new_key_id=new_key_id),
            resources=ResourceAdministration(
                authority.keys,
                authority.limits,
                authority.prices,
                clock=clock,
                new_id=new_id,
                webhooks=webhooks,
                targets=targets,
            ),
            committer=self._committer,
            ledger=LedgerDesk(
                store.database.reading,
                self._reports_thread,
                self._lists_thread,
                self._call_soon,
                clock,
            ),
            clock=clock,
            send=self._send,
            age_s=worker.command_age_s,
            holds_database=store.database.holds,
            checker=self._checker,
            call_soon=self._call_soon,
            **({} if signer is None else {"seal_key_of": signer.seal_key}),
        )
        self._audit_check = BackgroundCheck(
            store.database.reading,
            signer=signer,
            notes=notes,
            on_done=lambda checked: self._worker.call_soon(self._on_audit_checked, checked),
            on_failed=lambda reason: _logger.error("the audit log can't be read: %s", reason),
        )
        self._housekeeping = Housekeeping(
            settings.retention, clock=clock, commit=self._handler.commit
        )
        self._ticker = Ticker(EXPIRY_INTERVAL_S, lambda: self._worker.call_soon(self._tick))
        self._renewal = Ticker(RENEWAL_INTERVAL_S, self._renew_lease)

    def run(self) -> int:
        """Serve until the worker loop ends; what was queued by then is still committed."""
        sys.setswitchinterval(THREAD_SWITCH_INTERVAL_S)
        calm_collector()
        self._committer.start()
        self._worker.call_soon(self._gate.open, self._handler)
        self._worker.announce(self._offer)
        self._ticker.start()
        self._renewal.start()
        if self._checker is not None:
            self._checker.start()
        self._audit_check.start()
        exit_code = self._worker.wait()
        self._ticker.stop()
        self._renewal.stop()
        if self._checker is not None:
            self._checker.stop()
        self._webhook_threads.shutdown(wait=False, cancel_futures=True)
        self._reports_thread.shutdown(wait=False, cancel_futures=True)
        self._lists_thread.shutdown(wait=False, cancel_futures=True)
        self._audit_check.stop()
        self._authority.close()
        if not self._committer.close(self._settings.drain_timeout_s):
            _logger.error("the last commits did not finish in time; they were not acknowledged")
            exit_code = exit_code or EXIT_FAILED
        return exit_code

    def _send(self, gateway_id: str, message: Message) -> None:
        self._worker.send(gateway_id, message)

    def _commit(self, operation: Operation, on_done: OnDone) -> None:
        self._handler.commit(operation, on_done)

    def _call_soon(self, function: Callable[..., object], *args: Any) -> None:
        self._worker.call_soon(function, *args)

    def _tick(self) -> None:
        self._handler.expire()
        if not self._handler.is_draining:
            self._housekeeping.tick()
            self._webhooks.tick()

    def _renew_lease(self) -> None:
        if self._database.wants_renewal():
            self._committer.submit(Flush())

    def _deliver(self, delivery: Delivery) -> None:
        self._worker.call_soon(self._handler.deliver, delivery)

    def _on_audit_checked(self, checked: CheckedLog) -> None:
        if checked.trouble is None:
            _logger.info("%s", checked)
            return
        _logger.error("%s", checked)
        self._handler.metrics.on_broken_audit_log()
        if not self._handler.is_draining:
            # Gateways show it on /health.
            self._worker.set_phase("ready", detail=str(checked))

    def _on_fatal(self, error: StoreError) -> None:
        _logger.error("%s", error.message)
        self._worker.stop(error.message, exit_code_of(error))
