"""The engines: who serves which model, and the messages of running requests both ways."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from gateway.dispatch.routing import PrefixRouter
from gateway.dispatch.seats import EngineHandle
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError
from gateway.workers.wire import Wire
from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    Abort,
    CachedBlocks,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    EngineEvent,
    EngineOffer,
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
    Refused,
    StepOutput,
)
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.engines")

BACK_OFF_S = 0.25
"""After a refusal within its credit an engine is left alone for so long."""


AnswerT = TypeVar("AnswerT", Prepared, Detokenized, Embedded, Profiled)


class _Question(NamedTuple):
    """What an engine was asked outside of streams."""

    peer: Peer
    kind: type[Message]
    answer: "asyncio.Future[Any]"

    def fits(self, peer: Peer, event: Message) -> bool:
        """Whether a message is the answer that is still missing."""
        return self.peer is peer and isinstance(event, self.kind) and not self.answer.done()


class StreamSink(Protocol):
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


class EngineLink:
    """Requests to engines, and their answers to whom they concern.

    Args:
        wire: The socket of the engines.
        on_change: Called with a model's name when its engines, credits or loads changed.
        on_orphans: Called with an engine's report of what it did for a gateway that is gone.
    """

    def __init__(
        self,
        wire: Wire,
        on_change: Callable[[str], None],
        on_orphans: Callable[[OrphanUsage], None],
    ) -> None:
        self.prefixes = PrefixRouter()
        self._on_orphans = on_orphans
        self._wire = wire
        self._on_change = on_change
        self._handles: dict[Peer, EngineHandle] = {}
        self._by_model: dict[str, list[EngineHandle]] = {}
        self._known: dict[str, EngineOffer] = {}
        self._questions: dict[str, _Question] = {}
        self._streams: dict[Peer, dict[tuple[str, int], StreamSink]] = {}
        self._refused: set[Peer] = set()

    # What is there.

    def engines(self, model: str) -> Sequence[EngineHandle]:
        """The live engines of a model."""
        return self._by_model.get(model, ())

    def offer(self, model: str) -> EngineOffer | None:
        """What the engines of a model serve, or served last; None for an unknown model."""
        return self._known.get(model)

    def models(self) -> dict[str, EngineOffer]:
        """Every model that was offered since the start, by name."""
        return self._known

    def is_serving(self, model: str) -> bool:
        """Whether an engine takes new requests for a model."""
        return any(engine.peer.takes_work for engine in self.engines(model))

    def version(self, model: str) -> ProtocolVersion:
        """The oldest wire that an engine of a model speaks."""
        spoken = (engine.peer.protocol_version for engine in self.engines(model))
        return min(spoken, default=PROTOCOL_VERSION)

    # Requests.

    async def prepare(self, engine: EngineHandle, prepare: Prepare) -> Prepared:
        """Have a prompt rendered and tokenised.

        Raises:
            RemoteFailureError: The prompt is wrong, too long, or its engine is full.
            WorkerLostError: The engine died.
        """
        return await self._ask(engine, prepare, Prepared)

    async def detokenize(self, engine: EngineHandle, detokenize: Detokenize) -> Detokenized:
        """Have token ids spelt as text.

        Raises:
            RemoteFailureError: An id is wrong, or its engine is full.
            WorkerLostError: The engine died.
        """
        return await self._ask(engine, detokenize, Detokenized)

    async def embed(self, engine: EngineHandle, embed: Embed) -> Embedded:
        """Have texts turned into vectors.

        Raises:
            RemoteFailureError: An input is wrong, too long, or the engine is full.
            WorkerLostError: The engine died.
        """
        return await self._ask(engine, embed, Embedded)

    async def profile(self, engine: EngineHandle, profile: Profile) -> Profiled:
        """Have an engine record what it does.

        Raises:
            RemoteFailureError: It records another one, or can't write.
            WorkerLostError: The engine died.
        """
        return await self._ask(engine, profile, Profiled)

    async def prepare_all(
        self, engine: EngineHandle, prepares: Sequence[Prepare]
    ) -> list[Prepared]:
        """Several prompts at once; the first failure ends the wait for the others.

        Raises:
            RemoteFailureError: A prompt is wrong, too long, or its engine is full.
            WorkerLostError: The engine died.
        """
        if len(prepares) == 1:
            return [await self.prepare(engine, prepares[0])]
        tasks = [asyncio.ensure_future(self.prepare(engine, prepare)) for prepare in prepares]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def generate(self, engine: EngineHandle, generate: Generate, sink: StreamSink) -> None:
        """Start one choice; its output goes to `sink` until it ends or `forget` is called.

        Raises:
            WorkerLostError: The engine takes nothing any more.
        """
        streams = self._streams.setdefault(engine.peer, {})
        streams[generate.request_id, generate.choice] = sink
        try:
            self._send(engine, generate)
        except WorkerLostError:
            streams.pop((generate.request_id, generate.choice), None)
            raise

    def extend(self, engine: EngineHandle, extend: Extend) -> None:
        """Let a choice go on to more tokens; nothing happens when its engine is gone."""
        self._wire.send(engine.peer, extend)

    def abort(self, engine: EngineHandle, abort: Abort) -> None:
        """Stop a choice; nothing happens when its engine is gone."""
        self._wire.send(engine.peer, abort)

    def forget(self, engine: EngineHandle, request_id: str, choice: int) -> None:
        """Expect no more output of a choice; idempotent."""
        self._streams.get(engine.peer, {}).pop((request_id, choice), None)

    def orphans_noted(self, noted: OrphanUsageNoted) -> None:
        """An engine's report is durable: tell it, if it is here."""
        for peer in self._handles:
            if peer.instance_id == noted.engine_id:
                self._wire.send(peer, noted)

    # What the socket reports.

    def on_peer_ready(self, peer: Peer) -> None:
        """An engine takes work: for the first time, or again after a silence."""
        self.on_peer_updated(peer)

    def on_peer_updated(self, peer: Peer) -> None:
        """An engine's offer, credit or phase changed."""
        offer = peer.engine
        handle = self._handles.get(peer)
        if peer in self._refused:
            return  # it has been told, and will leave
        if handle is None and offer is not None and peer.takes_work:
            handle = self._join(peer, offer)
        if handle is None:
            return
        if offer is not None:
            handle.offer = offer
            self._known[offer.model] = offer
        self._on_change(handle.offer.model)

    def _join(self, peer: Peer, offer: EngineOffer) -> EngineHandle | None:
        others = self.engines(offer.model)
        if others and others[0].offer.fingerprint != offer.fingerprint:
            self._refused.add(peer)
            _logger.error(
                "engine %s serves other weights or settings under the name %s; refused",
                peer.instance_id,
                offer.model,
            )
            self._wire.send(
                peer,
                Refused(
                    code=ErrorCode.FINGERPRINT_MISMATCH,
                    message=f"Other engines serve `{offer.model}` with another fingerprint.",
                ),
            )
            return None
        handle = EngineHandle(peer, offer)
        self._handles[peer] = handle
        self._by_model.setdefault(offer.model, []).append(handle)
        return handle

    def on_peer_lost(self, peer: Peer) -> None:
        """An engine is dead: everything that it had ends here."""
        self._refused.discard(peer)
        handle = self._handles.pop(peer, None)
        self.prefixes.forget(peer)
        if handle is not None:
            self._by_model[handle.offer.model].remove(handle)
        lost = WorkerLostError(
            "The engine that worked on this request was lost; please try again.",
            worker_id=peer.instance_id,
            reason=peer.loss_reason,
        )
        for question in list(self._questions.values()):
            if question.peer is peer and not question.answer.done():
                question.answer.set_exception(lost)
        for sink in list(self._streams.pop(peer, {}).values()):
            sink.on_failure(lost, None)
        if handle is not None:
            self._on_change(handle.offer.model)

    def on_event(self, peer: Peer, event: EngineEvent) -> None:
        """A message about requests."""
        if isinstance(event, StepOutput):
            self._on_step_output(peer, event)
        elif isinstance(event, Prepared | Detokenized | Embedded | Profiled):
            question = self._questions.get(event.request_id)
            if question is not None and question.fits(peer, event):
                question.answer.set_result(event)
        elif isinstance(event, CachedBlocks):
            self.prefixes.on_cached_blocks(peer, event)
        elif isinstance(event, OrphanUsage):
            self._on_orphans(event)
        elif isinstance(event, Failure):
            self._on_failure(peer, event)

    def _on_step_output(self, peer: Peer, output: StepOutput) -> None:
        streams = self._streams.get(peer)
        if streams:
            for delta in output.deltas:
                sink = streams.get((delta.request_id, delta.choice))
                if sink is not None and sink.attempt == delta.attempt:
                    sink.on_delta(delta)
            for end in output.ends:
                if isinstance(end, Failure):
                    self._on_failure(peer, end)
                    continue
                sink = streams.get((end.request_id, end.choice))
                if sink is not None and sink.attempt == end.attempt:
                    streams.pop((end.request_id, end.choice), None)
                    sink.on_finished(end)
        handle = self._handles.get(peer)
        if handle is not None and output.ends:
            self._on_change(handle.offer.model)

    def _on_failure(self, peer: Peer, failure: Failure) -> None:
        if failure.code in (ErrorCode.CREDIT_EXCEEDED, ErrorCode.WORKER_UNAVAILABLE):
            self._back_off(peer)
        question = self._questions.get(failure.request_id)
        if question is not None and question.peer is peer:
            if not question.answer.done():
                question.answer.set_exception(RemoteFailureError.from_message(failure))
            return
        streams = self._streams.get(peer, {})
        for key, sink in list(streams.items()):
            concerns = key[0] == failure.request_id and failure.choice in (-1, key[1])
            # Without an attempt (0) it was refused before anybody looked into it.
            if concerns and failure.attempt in (0, sink.attempt):
                streams.pop(key, None)
                sink.on_failure(RemoteFailureError.from_message(failure), failure)

    async def _ask(
        self,
        engine: EngineHandle,
        message: Prepare | Detokenize | Embed | Profile,
        kind: type[AnswerT],
    ) -> AnswerT:
        """Send a question and wait for the only answer."""
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._questions[message.request_id] = _Question(engine.peer, kind, answer)
        try:
            self._send(engine, message)
            return await answer
        finally:
            self._questions.pop(message.request_id, None)

    def _back_off(self, peer: Peer) -> None:
        handle = self._handles.get(peer)
        if handle is not None and not handle.is_backing_off:
            handle.is_backing_off = True
            asyncio.get_running_loop().call_later(BACK_OFF_S, self._end_back_off, handle)

    def _end_back_off(self, handle: EngineHandle) -> None:
        handle.is_backing_off = False
        self._on_change(handle.offer.model)

    def _send(self, engine: EngineHandle, message: Message) -> None:
        if engine.peer not in self._handles:
            raise WorkerLostError("The engine that was to take this request was lost.")
        self._wire.send(engine.peer, message)
