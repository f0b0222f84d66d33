"""Sends webhooks what the audit log takes up: in order, again until it is taken, never forever.

The queue is the audit log itself, with a place in it for each webhook: what was committed is sent,
also after a restart, at least once. A target that hangs costs one of a few threads for some seconds
and nobody else anything.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from auth_worker.clock import Clock
from auth_worker.errors import OutboundError
from auth_worker.outbound.exchange import Answer
from auth_worker.outbound.webhook_message import message_of
from auth_worker.principals.webhooks import StoredWebhook
from auth_worker.records.operations import (
    AppendAudit,
    AuditAction,
    AuditEntry,
    AuditRows,
    MoveWebhook,
    Operation,
    ReadAuditRows,
    Result,
)
from auth_worker.records.settled_money import SETTLED
from auth_worker.storage.backlog import OnDone
from protocol.wire.messages import AuditRecord

NUM_THREADS: Final = 4
TIMEOUT_S: Final = 10.0
"""How long one attempt may take."""
MAX_ANSWER_BYTES: Final = 64 * 1024
PAGE: Final = 100
MAX_BATCH_S: Final = 10.0
"""One webhook's turn; with a long backlog it queues again behind the others."""
BACKOFF_S: Final = (5, 20, 60, 300, 900, 1800, 3600)
"""Between attempts for one entry; the last one is repeated."""
MAX_REFUSALS: Final = 6
"""An entry that a target answers but doesn't take is given up after so many attempts."""
MAX_AGE_S: Final = 3 * 86_400
"""While a target can't be reached at all, entries wait for so long."""
SAVE_INTERVAL_S: Final = 60.0
"""A place that moved over entries of no interest is saved no more often."""
OWN_ACTIONS: Final = frozenset({"webhook_gave_up", "webhook_suspended"})
"""Of a webhook itself: telling it would fail for the same reason."""

Post = Callable[[str, Mapping[str, str], bytes], Answer]
Submit = Callable[[Operation, OnDone], None]

_logger = logging.getLogger("penstock.auth")


class _Turn(NamedTuple):
    """What came of one webhook's turn.

    Attributes:
        last_seq: Of the last entry that was taken; None without any.
        failed: The entry that wasn't, if one wasn't.
        error: Why; for people.
        status: What the target answered; None when it didn't.
    """

    last_seq: int | None
    failed: AuditRecord | None = None
    error: str = ""
    status: int | None = None


class WebhookDesk:
    """Gives each webhook its turns; everything but `_post_all` runs in the I/O thread.

    Args:
        webhooks: By id; administration changes them.
        post: Sends a body to a URL; raises OutboundError.
        executor: Runs turns; with `NUM_THREADS` threads.
        submit: Queues what is to be made durable or read, with its answer.
        clock: Of the wall and monotonic.
        call_soon: Runs a function in the I/O thread.
    """

    def __init__(
        self,
        webhooks: dict[str, StoredWebhook],
        post: Post,
        executor: Executor,
        *,
        submit: Submit,
        clock: Clock,
        call_soon: Callable[..., None],
    ) -> None:
        self._webhooks = webhooks
        self._post = post
        self._executor = executor
        self._submit = submit
        self._clock = clock
        self._call_soon = call_soon
        self._busy: set[str] = set()
        self._saved: dict[str, tuple[int, float]] = {}

    def tick(self) -> None:
        """Begin the turns that are due; to be called about every second."""
        now_ms = self._clock.wall_s() * 1000
        for hook in list(self._webhooks.values()):
            pause_ms = hook.next_attempt_ms - now_ms
            # None is longer: the clock was set back.
            waits = 0 < pause_ms <= BACKOFF_S[-1] * 1000
            if hook.suspended_at is None and not waits and hook.webhook_id not in self._busy:
                self._busy.add(hook.webhook_id)
                self._read(hook)

    def _read(self, hook: StoredWebhook) -> None:
        def on_read(result: Result) -> None:
            if isinstance(result, AuditRows):
                self._on_rows(hook, result)
            else:
                self._busy.discard(hook.webhook_id)

        # There is one for each commit: only who names them reads them.
        but_for = "" if SETTLED in hook.events else SETTLED
        wanted = ReadAuditRows(PAGE, after_seq=hook.after_seq, oldest_first=True, but_for=but_for)
        self._submit(wanted, on_read)

    def _on_rows(self, hook: StoredWebhook, page: AuditRows) -> None:
        rows = page.entries
        through_seq = max(page.through_seq, rows[-1].seq if rows else 0)
        wanted = [row for row in rows if hook.wants(row.action) and not _is_own(hook, row)]
        if not wanted:
            self._busy.discard(hook.webhook_id)
            if through_seq > hook.after_seq:
                hook.after_seq = through_seq
                self._save_now_and_then(hook)
            return
        args = (hook.url, hook.secret, wanted)

        def run() -> None:
            turn = self._post_all(*args)
            last_seq = through_seq if turn.last_seq == wanted[-1].seq else turn.last_seq
            self._call_soon(self._on_turn, hook, turn._replace(last_seq=last_seq))

        self._executor.submit(run)

    def _post_all(self, url: str, secret: str, rows: Sequence[AuditRecord]) -> _Turn:
        """Send entries one after another until one isn't taken."""
        end_s = self._clock.monotonic_s() + MAX_BATCH_S
        last_seq: int | None = None
        for row in rows:
            if last_seq is not None and self._clock.monotonic_s() >= end_s:
                break
            try:
                message = message_of(row)
                headers = message.headers(secret, self._clock.wall_s())
                status = self._post(url, headers, message.body).status
            except OutboundError as error:
                return _Turn(last_seq, row, error.message)
            except Exception as error:  # the thread and the queue must live on
                _logger.exception("a webhook could not be sent")
                return _Turn(last_seq, row, type(error).__name__)
            if not 200 <= status < 300:
                return _Turn(last_seq, row, f"it answered {status}", status)
            last_seq = row.seq
        return _Turn(last_seq)

    def _on_turn(self, hook: StoredWebhook, turn: _Turn) -> None:
        self._busy.discard(hook.webhook_id)
        wall_s = self._clock.wall_s()
        delivered_at: int | None = None
        if turn.last_seq is not None:
            hook.after_seq, hook.num_failed, hook.next_attempt_ms = turn.last_seq, 0, 0
            hook.failing_since_ms = 0
            delivered_at = int(wall_s)
        if turn.failed is not None:
            self._on_failed(hook, turn, turn.failed, wall_s)
        self._save(hook, delivered_at, turn.error)

    def _on_failed(
        self, hook: StoredWebhook, turn: _Turn, failed: AuditRecord, wall_s: float
    ) -> None:
        hook.num_failed += 1
        if not hook.failing_since_ms:
            hook.failing_since_ms = int(wall_s * 1000)
        pause_s = BACKOFF_S[min(hook.num_failed, len(BACKOFF_S)) - 1]
        hook.next_attempt_ms = int((wall_s + pause_s) * 1000)
        if hook.num_failed == 1:
            _logger.warning("webhook %s: %s", hook.webhook_id, turn.error)
        if turn.status == 410:
            # Standard Webhooks: the consumer is gone for good.
            hook.suspended_at = int(wall_s)
            self._note(hook, "webhook_suspended", failed, turn.error)
            return
        is_refused = turn.status is not None and hook.num_failed >= MAX_REFUSALS
        # Of what waited for this process, or for its webhook to be reactivated, nothing was tried.
        tried_since_ms = max(failed.at_ms, hook.failing_since_ms)
        if is_refused or wall_s * 1000 - tried_since_ms > MAX_AGE_S * 1000:
            hook.after_seq, hook.num_failed = failed.seq, 0
            hook.next_attempt_ms = int((wall_s + BACKOFF_S[0]) * 1000)
            self._note(hook, "webhook_gave_up", failed, turn.error)

    def _note(
        self, hook: StoredWebhook, action: AuditAction, failed: AuditRecord, error: str
    ) -> None:
        detail = {"seq": failed.seq, "event": failed.action, "error": error[:200]}
        entry = AuditEntry(
            at_ms=int(self._clock.wall_s() * 1000),
            actor_key_id="",
            action=action,
            subject=hook.webhook_id,
            detail=detail,
        )
        self._submit(AppendAudit(entry), _ignore)

    def _save_now_and_then(self, hook: StoredWebhook) -> None:
        saved_seq, saved_s = self._saved.get(hook.webhook_id, (0, float("-inf")))
        is_due = self._clock.monotonic_s() - saved_s >= SAVE_INTERVAL_S
        if is_due and saved_seq != hook.after_seq:
            self._save(hook, None, "")

    def _save(self, hook: StoredWebhook, delivered_at: int | None, error: str) -> None:
        if hook.webhook_id not in self._webhooks:
            return  # deleted meanwhile
        self._saved[hook.webhook_id] = (hook.after_seq, self._clock.monotonic_s())
        values: dict[str, object] = {
            "after_seq": hook.after_seq,
            "num_failed": hook.num_failed,
            "next_attempt_ms": hook.next_attempt_ms,
            "suspended_at": hook.suspended_at,
        }
        if delivered_at is not None:
            values["last_delivered_at"] = delivered_at
            values["last_error"] = ""
        if error:
            values["last_error"] = error[:300]
        self._submit(MoveWebhook(hook.webhook_id, values), _ignore)


def _is_own(hook: StoredWebhook, row: AuditRecord) -> bool:
    return row.action in OWN_ACTIONS and row.subject == hook.webhook_id


def _ignore(_result: Result) -> None:
    """Nobody waits for it."""
