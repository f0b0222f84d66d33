"""Takes the commands of gateways: decides at once, answers what must last after its commit."""

import logging
from collections.abc import Callable
from typing import TypeGuard

from msgspec import structs

from auth_worker.administration.admin_commands import AdminCommand, AdminCommands, failure_of
from auth_worker.administration.key_administration import Administration
from auth_worker.administration.resource_administration import ResourceAdministration
from auth_worker.clock import Clock
from auth_worker.decisions.authority import Authority
from auth_worker.decisions.slices import Postponed
from auth_worker.errors import AuthError
from auth_worker.records.operations import (
    AddSums,
    Beside,
    Flush,
    Operation,
    ReadAuditRows,
    ReadKeys,
    ReadUsageRows,
    Result,
)
from auth_worker.serving.ledger_desk import LedgerDesk
from auth_worker.serving.metrics import AuthMetrics
from auth_worker.serving.token_desk import TokenDesk
from auth_worker.storage.backlog import OnDone
from auth_worker.storage.committer import Committer, Delivery
from auth_worker.tokens.checker import TokenChecker
from protocol.errors import ErrorCode
from protocol.runtime import logs
from protocol.runtime.tracing import tell_step
from protocol.wire.messages import (
    Adjust,
    AuthCommand,
    Authorize,
    Credits,
    Denied,
    Failure,
    Granted,
    Load,
    Message,
    OrphanUsage,
    OrphanUsageNoted,
    Renew,
    Settle,
    Settled,
)

RETRY_AFTER_S = 2.0
EXPIRED_A_TURN = 256
"""Leases that are charged at a time: some milliseconds, in which no decision is made."""

Send = Callable[[str, Message], None]
"""Sends a message to the gateway of an id."""

_logger = logging.getLogger("penstock.auth")


def _at_once(function: Callable[..., object], *args: object) -> None:
    function(*args)


class AuthHandler:
    """The auth worker's side of the worker loop; everything here runs in the I/O thread.

    Args:
        authority: Decides.
        administration: Checks admin commands on keys.
        resources: Checks those on users, teams, limits and prices.
        committer: Makes durable.
        clock: Both clocks.
        ledger: Reads what would hold the commits up, pages of keys among it.
        send: Answers a gateway; silently drops what is for one that is gone.
        age_s: How long the command being handled may have waited unread at most, because this
            process stood still; 0.0 when it did not.
        holds_database: Whether no other auth worker can be active by now.
        checker: Verifies bearer tokens; None when none are accepted.
        call_soon: Runs a function in the I/O thread.
        seal_key_of: What seals the kept answers of whoever comes with bearer tokens; empty where
            there is no key for that.

    Attributes:
        metrics: What it counts.
        is_draining: Whether nothing new is granted.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        administration: Administration,
        resources: ResourceAdministration,
        committer: Committer,
        ledger: LedgerDesk,
        clock: Clock,
        send: Send,
        age_s: Callable[[], float] = lambda: 0.0,
        holds_database: Callable[[], bool] = lambda: True,
        checker: TokenChecker | None = None,
        call_soon: Callable[..., None] = _at_once,
        seal_key_of: Callable[[str], bytes] = lambda _: b"",
    ) -> None:
        self._authority = authority
        self._admin = AdminCommands(
            administration,
            resources,
            authority,
            committer=committer,
            clock=clock,
            before_reading=self.expire,
            seal_key_of=seal_key_of,
        )
        self._committer = committer
        self._ledger = ledger
        self._clock = clock
        self._send = send
        self._age_s = age_s
        self._call_soon = call_soon
        self._holds_database = holds_database
        self.metrics = AuthMetrics(
            num_leases=lambda: authority.num_leases,
            num_unanswered=lambda: committer.num_unanswered,
            num_groups=lambda: committer.num_groups,
            checker=checker,
        )
        self._tokens: TokenDesk | None = None
        if checker is not None:
            self._tokens = TokenDesk(
                checker,
                authority.keys,
                clock=clock,
                call_soon=call_soon,
                send=send,
                decide=self._decide,
                emit=committer.submit,
            )
        self.is_draining = False
        self._has_more_to_expire = False
        self._num_due = 0
        self._settling: set[tuple[str, str]] = set()
        self._noting: set[tuple[str, str, str]] = set()

    def on_command(self, gateway_id: str, command: AuthCommand) -> None:
        """Carry out one command, or queue it and answer later."""
        match command:
            case Authorize():
                if self._tokens is None or not self._tokens.take(gateway_id, command):
                    self._decide(gateway_id, command)
            case Settle():
                self._settle(gateway_id, command)
            case Adjust():
                self._adjust(gateway_id, command)
            case Renew():
                self._authority.renew(command)
            case OrphanUsage():
                self._note_orphans(gateway_id, command)
            case _ if isinstance(command, AdminCommand):
                self._administer(gateway_id, command)
            case _:
                pass  # connection messages are the worker loop's

    def on_gateway_lost(self, gateway_id: str) -> None:
        """Nothing to drop: its leases are settled from its outbox, or expire."""
        _logger.info("gateway %s is gone; %d leases are open", gateway_id, self.num_leases)

    def on_drain(self, timeout_s: float) -> None:
        """Grant nothing new; settlements go on until the end."""
        self.is_draining = True
        _logger.info("draining for up to %.0f s", timeout_s)

    def num_unfinished(self) -> int:
        """Operations whose acknowledgement is due.

        Counted in this thread, until the answer is handed over: a drain that ended between commit
        and answer would lose acknowledgements.
        """
        return self._num_due

    @property
    def num_leases(self) -> int:
        """Open leases."""
        return self._authority.num_leases

    def load(self) -> Load:
        """Commits under way as running."""
        return Load(num_running=self._committer.num_unanswered)

    def credits(self, gateway_id: str) -> Credits | None:
        """None for every gateway: only engines grant credits."""
        return None

    def progress_counter(self) -> int:
        """Grows with each committed group, so that a stuck disk shows as a hung worker."""
        return self._committer.num_groups

    def deliver(self, delivery: Delivery) -> None:
        """Hand out the results of a committed group."""
        for on_done, result in delivery:
            self._num_due -= 1
            on_done(result)

    def expire(self) -> None:
        """Charge leases that nobody renewed or settled; to be called about every second.

        Those of a gateway that is gone expire together, however many they are; between some of
        them and the next there is time for decisions.
        """
        num_expired = self._authority.expire(EXPIRED_A_TURN)
        self._has_more_to_expire = num_expired == EXPIRED_A_TURN
        if self._has_more_to_expire:
            self._call_soon(self.expire)
        self.metrics.on_expired(num_expired)
        if num_expired:
            _logger.warning(
                "%d leases expired and were charged by their last usage report", num_expired
            )

    def _decide(
        self,
        gateway_id: str,
        command: Authorize,
        token_error: AuthError | None = None,
        *,
        asked_s: float | None = None,
    ) -> None:
        """Answer a question, now or when a slice is committed; `asked_s` is set the second time."""
        now_s = self._clock.monotonic_s()
        waited_s = 0.0 if asked_s is None else now_s - asked_s
        answer = self._authorize(command, token_error, waited_s)
        if isinstance(answer, Postponed):
            since_s = now_s if asked_s is None else asked_s

            def decide_again(is_durable: bool) -> None:
                if is_durable:
                    self._decide(gateway_id, command, token_error, asked_s=since_s)
                else:
                    self._answer(gateway_id, command, self._unavailable(command), since_s)

            answer.then(decide_again)
        else:
            self._answer(gateway_id, command, answer, now_s if asked_s is None else asked_s)

    def _answer(
        self, gateway_id: str, command: Authorize, answer: Granted | Denied, asked_s: float
    ) -> None:
        _log_decision(command, answer)
        self.metrics.on_decision(answer)
        if command.traceparent:
            error = str(answer.code) if isinstance(answer, Denied) else ""
            now_s = self._clock.monotonic_s()
            tell_step(command.traceparent, "auth.decide", asked_s, now_s, error=error)
        self._send(gateway_id, answer)

    def _authorize(
        self, command: Authorize, token_error: AuthError | None, waited_s: float
    ) -> Granted | Denied | Postponed:
        may_grant = self._committer.is_healthy and self._holds_database()
        if self.is_draining or not may_grant:
            return self._unavailable(command)
        if 0.0 < command.wait_s <= self._age_s() + waited_s:
            # Its client was refused long ago: a lease would only hold tokens that others want.
            return self._unavailable(command)
        if token_error is not None and token_error.code is ErrorCode.WORKER_UNAVAILABLE:
            return structs.replace(self._unavailable(command), message=token_error.message)
        answer = self._authority.authorize(command)
        if token_error is not None and _is_stranger(answer):
            # Why the token is none, instead of what is said of unknown keys.
            return structs.replace(answer, message=token_error.message)
        return answer

    def _adjust(self, gateway_id: str, command: Adjust) -> None:
        if not self._holds_database():
            # Another worker may have granted the same tokens; who waits asks again.
            self._send(gateway_id, _unsettled(command))
            return
        answer = self._authority.adjust(command)
        if not isinstance(answer, Postponed):
            self._send(gateway_id, answer)
        elif self._committer.is_healthy:
            answer.then(lambda is_durable: self._adjust_again(gateway_id, command, is_durable))
        else:
            self._send(gateway_id, _unsettled(command))

    def _adjust_again(self, gateway_id: str, command: Adjust, is_durable: bool) -> None:
        if is_durable:
            self._adjust(gateway_id, command)
        else:
            self._send(gateway_id, _unsettled(command))

    def _unavailable(self, command: Authorize) -> Denied:
        return Denied(
            request_id=command.request_id,
            code=ErrorCode.WORKER_UNAVAILABLE,
            message="Authorization is not available at the moment. Please try again.",
            retry_after_s=RETRY_AFTER_S,
            key_id=self._authority.key_id_of(command),
        )

    def _settle(self, gateway_id: str, command: Settle) -> None:
        # Gateways repeat what isn't acknowledged; while the disk is stuck that must not pile up,
        # however many of them come and go meanwhile.
        settling = (gateway_id, command.lease_id)
        if settling in self._settling or self._committer.is_full:
            return
        booking = self._authority.settle(command)
        if isinstance(booking, Failure):
            self._send(gateway_id, booking)
            return

        def on_done(result: Result) -> None:
            self._settling.discard(settling)
            self._authority.booked(booking, result)
            if isinstance(result, AuthError):
                self._send(gateway_id, failure_of(command.request_id, result))
            else:
                self._send(gateway_id, Settled(lease_id=command.lease_id))

        self._settling.add(settling)
        self._num_due += 1
        self._committer.submit(booking, on_done, is_patient=True)

    def _note_orphans(self, gateway_id: str, command: OrphanUsage) -> None:
        noted = OrphanUsageNoted(report_id=command.report_id, engine_id=command.engine_id)
        # Engines repeat what isn't acknowledged, as gateways do.
        noting = (gateway_id, command.engine_id, command.report_id)
        if noting in self._noting or self._committer.is_full:
            return
        operations = self._authority.note_orphans(command)
        if not operations:
            self._send(gateway_id, noted)
            return
        for operation in operations:
            self._committer.submit(operation)

        def on_done(_result: Result) -> None:
            self._noting.discard(noting)
            self._send(gateway_id, noted)

        self._noting.add(noting)
        self.commit(Flush(), on_done)

    def _administer(self, gateway_id: str, command: AdminCommand) -> None:
        def answer(message: Message) -> None:
            self._send(gateway_id, message)

        prepared = self._admin.prepare(command, answer)
        if prepared is None:
            return
        operation, on_done = prepared
        is_one_key = isinstance(operation, ReadKeys) and operation.key_id
        if isinstance(operation, Beside) and not is_one_key:
            self._read_beside(operation, on_done)
        else:
            self.commit(operation, on_done)

    def _read_beside(self, wanted: Beside, on_done: OnDone) -> None:
        """Read what may be long beside the writer, as of every operation before it.

        Leases that are due are charged by then, however many turns that takes.
        """
        if self._has_more_to_expire:
            self._call_soon(self._read_beside, wanted, on_done)
            return

        def on_added(result: Result) -> None:
            if isinstance(result, AuthError):
                on_done(result)
            else:
                self._read(wanted, on_done)

        before: Operation = Flush()
        of_minutes = isinstance(wanted, ReadUsageRows) and wanted.bucket == "minute"
        if not isinstance(wanted, ReadAuditRows) and not of_minutes:
            before = AddSums(wanted)
        self.commit(before, on_added)

    def _read(self, wanted: Beside, on_done: OnDone) -> None:
        def on_read(result: Result) -> None:
            self._num_due -= 1
            on_done(result)

        self._num_due += 1
        self._ledger.read(wanted, on_read)

    def commit(self, operation: Operation, on_done: OnDone) -> None:
        """Make an operation durable and call back with its result, through `deliver`."""
        self._num_due += 1
        self._committer.submit(operation, on_done)


def _is_stranger(answer: Granted | Denied | Postponed) -> TypeGuard[Denied]:
    """Whether nobody is known by what was presented."""
    return isinstance(answer, Denied) and answer.code is ErrorCode.INVALID_API_KEY


def _unsettled(command: Adjust) -> Failure:
    return Failure(
        request_id=command.request_id,
        code=ErrorCode.WORKER_UNAVAILABLE,
        message="The auth worker's database takes no writes at the moment. Please try again.",
        retry_after_s=RETRY_AFTER_S,
    )


def _log_decision(command: Authorize, answer: Granted | Denied) -> None:
    """A log line under the request's id and its client's own; what is granted is only detail."""
    level = logging.INFO if isinstance(answer, Denied) else logging.DEBUG
    if not _logger.isEnabledFor(level):
        return
    fields = {"key_id": answer.key_id, "endpoint": command.endpoint}
    text = "granted"
    if isinstance(answer, Denied):
        fields["code"] = str(answer.code)
        text = f"refused: {answer.code}"
    with logs.about(command.request_id, command.trace_id):
        _logger.log(level, "%s", text, extra={"fields": fields})
