"""Answers what gateways ask of a parser worker; plain logic without sockets or threads."""

import logging
from collections import OrderedDict
from collections.abc import Callable

from protocol.errors import ErrorCode, PenstockError
from protocol.runtime import logs
from protocol.wire.messages import (
    CloseParse,
    Credits,
    Failure,
    Load,
    Message,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseDelta,
    ParseOpened,
    ParserCommand,
)
from toolparser_worker.errors import TooManySessionsError
from toolparser_worker.metrics import ParserMetrics
from toolparser_worker.sessions import SessionKey, SessionStore

MAX_REMEMBERED_FAILURES = 4096
"""Requests that are remembered as failed, so that each is told only once."""

MAX_ANSWERED_TOGETHER = 32
"""Deltas whose events leave in one message. The gateway reads them while the next ones are parsed;
with fewer, messages would cost more than the deltas in them."""

_RETRY_AFTER_S = 1.0
_logger = logging.getLogger("penstock.toolparser")


class ParserHandler:
    """Opens, feeds and closes sessions for any number of gateways (`WorkerHandler`).

    Each command is answered at once, before the next one is looked at, so a gateway gets its
    batches back in the order it sent them.

    Args:
        store: The open sessions.
        send: Sends a message to a gateway.
        flush: Lets what was sent leave at once.

    Attributes:
        metrics: What was counted.
    """

    def __init__(
        self,
        store: SessionStore,
        send: Callable[[str, Message], None],
        flush: Callable[[], None],
    ) -> None:
        self.metrics = ParserMetrics(lambda: len(store))
        self._store = store
        self._send = send
        self._flush = flush
        self._failed: OrderedDict[SessionKey, None] = OrderedDict()
        self._num_deltas = 0
        self._is_draining = False

    def on_command(self, gateway_id: str, command: ParserCommand) -> None:
        """Carries out one command; others than the parser's own are the worker's business."""
        match command:
            case ParseBatch():
                self._parse(gateway_id, command)
            case OpenParse():
                self._open(gateway_id, command)
            case CloseParse():
                key = (gateway_id, command.request_id, command.attempt)
                self._store.close(key)
                self._failed.pop(key, None)

    def on_gateway_lost(self, gateway_id: str) -> None:
        """Forgets what a gateway wanted that is gone."""
        num_closed = self._store.close_gateway(gateway_id)
        if num_closed:
            _logger.info("dropped %d sessions of a lost gateway", num_closed)

    def on_drain(self, timeout_s: float) -> None:
        """Opens no more sessions; those that are open go on until they are closed."""
        self._is_draining = True
        _logger.info("draining %d sessions for at most %.1f s", len(self._store), timeout_s)

    def num_unfinished(self) -> int:
        """Sessions that are still open."""
        self._store.expire()
        return len(self._store)

    def load(self) -> Load:
        """How many sessions are open, as waiting.

        Every command is answered at once, so nothing ever runs: a session without new text waits
        for its engine, and must not make the worker look hung.
        """
        self._store.expire()
        self.metrics.take_over()
        return Load(num_waiting=len(self._store))

    def credits(self, gateway_id: str) -> Credits | None:
        """Parsing needs no credit: every command is answered at once."""
        return None

    def progress_counter(self) -> int:
        """Grows with each delta."""
        return self._num_deltas

    def _open(self, gateway_id: str, opening: OpenParse) -> None:
        key = (gateway_id, opening.request_id, opening.attempt)
        self._failed.pop(key, None)
        if self._is_draining:
            self._send(
                gateway_id,
                Failure(
                    request_id=opening.request_id,
                    attempt=opening.attempt,
                    code=ErrorCode.WORKER_UNAVAILABLE,
                    message="The parser is about to stop and opens no more requests.",
                ),
            )
            return
        try:
            session = self._store.open(key, opening)
        except PenstockError as error:
            _log_decision(opening, f"session refused: {error.code}")
            self._send(
                gateway_id,
                Failure(
                    request_id=opening.request_id,
                    attempt=opening.attempt,
                    code=error.code,
                    message=error.message,
                    param=error.param,
                    retry_after_s=(
                        _RETRY_AFTER_S if isinstance(error, TooManySessionsError) else None
                    ),
                ),
            )
            return
        _log_decision(opening, f"session opened, attempt {opening.attempt}")
        session.counts = self.metrics.counts(session.format_names)
        session.counts.num_streams += session.num_choices
        self._send(
            gateway_id,
            ParseOpened(
                request_id=opening.request_id,
                attempt=opening.attempt,
                keep_special_tokens=session.keep_special_tokens,
                grammar=session.grammar,
                thought=session.thought,
            ),
        )
        session.grammar = None  # the engine's from now on; it can be long

    def _parse(self, gateway_id: str, batch: ParseBatch) -> None:
        parsed: list[ParsedDelta] = []
        failures: list[Failure] = []
        self._num_deltas += len(batch.deltas)
        now_s = self._store.now_s()
        for delta in batch.deltas:
            if len(parsed) == MAX_ANSWERED_TOGETHER:
                self._send(gateway_id, ParsedBatch(deltas=tuple(parsed)))
                self._flush()
                parsed.clear()
            try:
                answer = self._parse_one(gateway_id, delta, now_s)
            except Exception:
                # A bug of ours must cost one request, not the worker and all the others.
                with logs.about(delta.request_id, self._trace_id(gateway_id, delta)):
                    _logger.exception("parsing failed for request %s", delta.request_id)
                answer = self._fail(
                    gateway_id, delta, ErrorCode.INTERNAL_ERROR, "The parser failed on this text."
                )
            if isinstance(answer, ParsedDelta):
                parsed.append(answer)
            elif answer is not None:
                failures.append(answer)
        if parsed:
            self._send(gateway_id, ParsedBatch(deltas=tuple(parsed)))
        for failure in failures:
            self._send(gateway_id, failure)

    def _parse_one(
        self, gateway_id: str, delta: ParseDelta, now_s: float
    ) -> ParsedDelta | Failure | None:
        session = self._store.find((gateway_id, delta.request_id, delta.attempt), now_s)
        if session is None:
            return self._fail(
                gateway_id,
                delta,
                ErrorCode.UNKNOWN_REQUEST,
                "The parser does not know this request; open it first.",
            )
        try:
            return session.parse(delta)
        except PenstockError as error:
            return self._fail(gateway_id, delta, error.code, error.message)

    def _trace_id(self, gateway_id: str, delta: ParseDelta) -> str:
        key = (gateway_id, delta.request_id, delta.attempt)
        session = self._store.find(key, self._store.now_s())
        return "" if session is None else session.trace_id

    def _fail(
        self, gateway_id: str, delta: ParseDelta, code: ErrorCode, message: str
    ) -> Failure | None:
        """Ends a request; what else arrives for it is ignored until it is opened again."""
        key = (gateway_id, delta.request_id, delta.attempt)
        self._store.close(key)
        if key in self._failed:
            self._failed.move_to_end(key)
            return None
        self._failed[key] = None
        if len(self._failed) > MAX_REMEMBERED_FAILURES:
            self._failed.popitem(last=False)
        return Failure(
            request_id=delta.request_id, attempt=delta.attempt, code=code, message=message
        )


def _log_decision(opening: OpenParse, text: str) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        with logs.about(opening.request_id, opening.trace_id):
            _logger.debug("%s", text)
