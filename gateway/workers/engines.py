"""The messages of running requests, to engines and back to whom they concern."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from gateway.dispatch.routing import PrefixRouter
from gateway.dispatch.slots import EngineHandle
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError
from gateway.telemetry.worker_records import WorkerRecords
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.questions import QuestionTable
from gateway.workers.wire import Wire
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    CacheCleared,
    CachedBlocks,
    Classified,
    Classify,
    ClearCache,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineEvent,
    Extend,
    Failure,
    Finished,
    Generate,
    Message,
    OrphanUsage,
    OrphanUsageNoted,
    Prepare,
    Prepared,
    Profile,
    Profiled,
    Score,
    Scored,
    StepOutput,
)
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.engines")

BACK_OFF_S = 0.25
"""After a refusal within its credit an engine is left alone this long, unless it says how long."""
MAX_BACK_OFF_S = 5.0
_BACK_OFF_CODES = frozenset(
    {ErrorCode.CREDIT_EXCEEDED, ErrorCode.WORKER_UNAVAILABLE, ErrorCode.OVERLOADED}
)

AnswerT = TypeVar(
    "AnswerT", Prepared, Detokenized, Embedded, Scored, Classified, Profiled, CacheCleared
)
_ANSWERS = (Prepared, Detokenized, Embedded, Scored, Classified, Profiled, CacheCleared)
ChoiceKey = tuple[str, int]
"""A choice on the wire: the request id of its prompt, and its number there."""


class ChoiceSink(Protocol):
    """Who receives the output of one choice; every method returns at once."""

    attempt: int

    def on_delta(self, delta: Delta) -> None:
        """New output of the current attempt."""
        ...

    def on_finished(self, finished: Finished) -> None:
        """The engine's end of the current attempt."""
        ...

    def on_failure(self, error: GatewayError, failure: Failure | None) -> None:
        """The current attempt failed; `failure` is None when the engine was lost."""
        ...

    def on_broken(self, error: GatewayError) -> None:
        """This sink raised: its request ends, and nobody else's."""
        ...


class EngineLink:
    """Requests to engines, and their answers to whom they concern.

    It is long because every message to and from an engine is a method.

    Args:
        wire: The socket of the engines.
        directory: Who is there.
        prefixes: Is told what engines have cached.
        on_orphans: Called with an engine's report of what it did for a gateway that is gone.
        records: Where answers and ends of choices are counted.
    """

    def __init__(
        self,
        wire: Wire,
        directory: EngineDirectory,
        prefixes: PrefixRouter,
        on_orphans: Callable[[OrphanUsage], None],
        records: WorkerRecords | None = None,
    ) -> None:
        self._records = records or WorkerRecords()
        self._wire = wire
        self._directory = directory
        self._prefixes = prefixes
        self._on_orphans = on_orphans
        self._questions = QuestionTable(records=self._records)
        self._choices: dict[Peer, dict[ChoiceKey, ChoiceSink]] = {}

    # Requests.

    def ask(
        self,
        engine: EngineHandle,
        question: Prepare | Detokenize | Embed | Score | Classify | Profile | ClearCache,
        kind: type[AnswerT],
    ) -> "asyncio.Future[AnswerT]":
        """Send a question, without waiting yet; whoever asked calls `close`, however it ended.

        The future raises `RemoteFailureError` when the question is wrong or the engine is full, and
        `WorkerLostError` when the engine died.

        Raises:
            WorkerLostError: The engine takes nothing any more.
        """
        answer = self._questions.open(question.request_id, engine.peer, kind)
        try:
            self._send(engine, question)
        except BaseException:
            self._questions.close(question.request_id)
            raise
        return answer

    def close(self, engine: EngineHandle, request_id: str) -> None:
        """Nobody waits for an answer any more; one that is still to come is cancelled there."""
        if self._questions.close(request_id) and engine.is_live:
            self._wire.cancel(engine.peer, request_id)

    def cancel(
        self, engine: EngineHandle, request_id: str, kind: type[AnswerT]
    ) -> "asyncio.Future[AnswerT] | None":
        """The same, for an answer that says what was computed until then; whoever gets it closes.

        None when the engine is gone, or has answered already.
        """
        is_open = self._questions.close(request_id)
        if not is_open or not engine.is_live:
            return None
        answer: asyncio.Future[AnswerT] = self._questions.open(request_id, engine.peer, kind)
        self._wire.cancel(engine.peer, request_id)
        return answer

    def generate(self, engine: EngineHandle, generate: Generate, sink: ChoiceSink) -> None:
        """Start one choice; its output goes to `sink` until it ends or `forget` is called.

        Raises:
            WorkerLostError: The engine takes nothing any more.
        """
        choices = self._choices.setdefault(engine.peer, {})
        key = (generate.request_id, generate.choice)
        choices[key] = sink
        try:
            self._send(engine, generate)
        except BaseException:
            choices.pop(key, None)
            if not choices:
                self._choices.pop(engine.peer, None)
            raise

    def extend(self, engine: EngineHandle, extend: Extend) -> None:
        """Let a choice go on to more tokens; nothing happens when its engine is gone."""
        self._wire.send(engine.peer, extend)

    def abort(self, engine: EngineHandle, abort: Abort) -> None:
        """Stop a choice; nothing happens when its engine is gone."""
        self._wire.send(engine.peer, abort)

    def forget(self, engine: EngineHandle, request_id: str, number: int) -> None:
        """Expect no more output of a choice; idempotent."""
        self._choices.get(engine.peer, {}).pop((request_id, number), None)

    def orphans_noted(self, noted: OrphanUsageNoted) -> None:
        """An engine's report is durable: tell it, if it is here."""
        for peer in self._directory.peers():
            if peer.instance_id == noted.engine_id:
                self._wire.send(peer, noted)

    # What the socket reports.

    def on_peer_ready(self, peer: Peer) -> None:
        """An engine takes work: for the first time, or again after a silence."""
        self._directory.update(peer)

    def on_peer_updated(self, peer: Peer) -> None:
        """An engine's offer, credit or phase changed."""
        self._directory.update(peer)

    def on_peer_lost(self, peer: Peer) -> None:
        """An engine is dead: everything that it had ends here."""
        handle = self._directory.remove(peer)
        self._prefixes.forget(peer)
        lost = WorkerLostError(
            "The engine that worked on this request was lost; please try again.",
            worker_id=peer.instance_id,
            reason=peer.loss_reason,
        )
        self._questions.fail_peer(peer, lost)
        for key, sink in self._choices.pop(peer, {}).items():
            self._deliver(peer, key, sink, partial(sink.on_failure, lost, None))
        if handle is not None:
            self._directory.changed(handle)

    def on_event(self, peer: Peer, event: EngineEvent) -> None:
        """A message about requests."""
        if isinstance(event, StepOutput):
            self._on_step_output(peer, event)
        elif isinstance(event, _ANSWERS):
            self._questions.answer(event.request_id, peer, event)
        elif isinstance(event, CachedBlocks):
            self._prefixes.on_cached_blocks(peer, event)
        elif isinstance(event, OrphanUsage):
            self._on_orphans(event)
        elif isinstance(event, Failure):
            self._on_failure(peer, event)

    def _on_step_output(self, peer: Peer, output: StepOutput) -> None:
        choices = self._choices.get(peer)
        if choices:
            for delta in output.deltas:
                key = (delta.request_id, delta.choice)
                sink = choices.get(key)
                if sink is not None and sink.attempt == delta.attempt:
                    try:
                        sink.on_delta(delta)
                    except Exception as error:  # noqa: BLE001  # one request's trouble is its own
                        self._on_broken(peer, key, sink, error)
            for end in output.ends:
                if isinstance(end, Failure):
                    self._on_failure(peer, end)
                else:
                    self._on_finished(peer, choices, end)
        handle = self._directory.handle(peer)
        if handle is not None and output.ends:
            self._directory.changed(handle)

    def _on_finished(self, peer: Peer, choices: dict[ChoiceKey, ChoiceSink], end: Finished) -> None:
        key = (end.request_id, end.choice)
        sink = choices.get(key)
        if sink is not None and sink.attempt == end.attempt:
            choices.pop(key, None)
            self._records.note(peer)
            self._deliver(peer, key, sink, partial(sink.on_finished, end))

    def _on_failure(self, peer: Peer, failure: Failure) -> None:
        # Of questions an engine lets each tenant wait with so many: whoever has more waits here.
        is_one_tenant_s = failure.code is ErrorCode.OVERLOADED and self._questions.is_open(
            failure.request_id, peer
        )
        if failure.code in _BACK_OFF_CODES and not is_one_tenant_s:
            self._directory.back_off(peer, min(failure.retry_after_s or BACK_OFF_S, MAX_BACK_OFF_S))
        error = RemoteFailureError.from_message(failure)
        if self._questions.fail(failure.request_id, peer, error):
            return
        choices = self._choices.get(peer, {})
        for key, sink in list(choices.items()):
            concerns = key[0] == failure.request_id and failure.choice in (-1, key[1])
            # Without an attempt (0) it was refused before anybody looked into it.
            if concerns and failure.attempt in (0, sink.attempt):
                choices.pop(key, None)
                own = RemoteFailureError.from_message(failure)
                self._records.note(peer, failure=own)
                self._deliver(peer, key, sink, partial(sink.on_failure, own, failure))

    def _deliver(
        self, peer: Peer, key: ChoiceKey, sink: ChoiceSink, news: Callable[[], None]
    ) -> None:
        """Tell one choice; whatever it raises is its own trouble."""
        try:
            news()
        except Exception as error:  # noqa: BLE001  # one request's trouble is its own
            self._on_broken(peer, key, sink, error)

    def _on_broken(self, peer: Peer, key: ChoiceKey, sink: ChoiceSink, error: Exception) -> None:
        _logger.error("request %s failed while its output was delivered", key[0], exc_info=error)
        self._choices.get(peer, {}).pop(key, None)
        try:
            sink.on_broken(GatewayError("Internal server error."))
        except Exception:
            _logger.exception("request %s could not be ended", key[0])

    def _send(self, engine: EngineHandle, message: Message) -> None:
        if not engine.is_live:
            raise WorkerLostError("The engine that was to take this request was lost.")
        self._wire.send(engine.peer, message)
