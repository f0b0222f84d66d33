"""The parser workers: sessions spread over them, texts batched to them, events handed back."""

import asyncio
import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from gateway import bridge
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError, WorkerUnavailableError
from gateway.telemetry.worker_records import WorkerRecords
from gateway.workers.wire import Wire
from protocol.wire.messages import (
    Failure,
    OpenParse,
    ParsedBatch,
    ParsedDelta,
    ParseOpened,
    ParserEvent,
)
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.parsers")


class ParseSink(Protocol):
    """Who receives what was parsed of one request; every method returns at once."""

    attempt: int

    def on_parsed(self, parsed: ParsedDelta) -> None:
        """What one piece of text yielded, for the current attempt."""
        ...

    def on_parse_failure(self, error: GatewayError) -> None:
        """The parser ended the session of the current attempt, or was lost with it."""
        ...


class _Pending:
    """Text of one choice that leaves with the next batch."""

    __slots__ = ("attempt", "ends", "final", "texts")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.texts: list[str] = []
        self.ends: list[int] = []
        self.final = False


class ParserLink:
    """Opens sessions at the parser with the fewest, and forwards text once a wake-up.

    Args:
        wire: The socket of the parsers.
        records: Where sessions are counted.
    """

    def __init__(self, wire: Wire, records: WorkerRecords | None = None) -> None:
        self._records = records or WorkerRecords()
        self._wire = wire
        self._sessions: dict[Peer, dict[str, ParseSink]] = {}
        self._opening: dict[tuple[str, int], tuple[Peer, asyncio.Future[ParseOpened]]] = {}
        # Sessions that failed between their answer and the moment in which their opener read it.
        self._spoilt: dict[tuple[str, int], GatewayError] = {}
        self._outgoing: dict[Peer, dict[tuple[str, int], _Pending]] = {}
        self._is_flush_planned = False
        self._arrival: asyncio.Event = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a parser takes new sessions."""
        return any(peer.takes_work for peer in self._sessions)

    async def arrival(self) -> None:
        """Wait until a parser comes, or comes back; its caller bounds the time."""
        await self._arrival.wait()

    async def open(self, message: OpenParse, sink: ParseSink) -> tuple[Peer, ParseOpened]:
        """Open a session at the parser with the fewest that knows the formats.

        Returns:
            The parser, and what it answered.

        Raises:
            WorkerUnavailableError: No parser is there, or none knows the formats.
            WorkerLostError: The parser died meanwhile.
            RemoteFailureError: It refused.
        """
        parser = self._choose(message)
        key = (message.request_id, message.attempt)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ParseOpened] = loop.create_future()
        since = loop.time()
        self._opening[key] = (parser, future)
        self._sessions[parser][message.request_id] = sink
        try:
            self._wire.send(parser, message)
            opened = await future
            self._records.note(parser, loop.time() - since)
            if key in self._spoilt:
                raise self._spoilt[key]
            if parser not in self._sessions:
                raise WorkerLostError("The parser was lost as soon as it had answered.")
            return parser, opened
        except BaseException:
            # Perhaps it was opened and only we don't know; closing is idempotent.
            self.close(parser, message.request_id, message.attempt)
            raise
        finally:
            self._opening.pop(key, None)
            self._spoilt.pop(key, None)

    def feed(
        self,
        parser: Peer,
        request_id: str,
        choice: int,
        attempt: int,
        text: str,
        token_ends: tuple[int, ...] = (),
        *,
        final: bool = False,
    ) -> None:
        """Text for a parser; what gathers until the loop's next turn travels as one message."""
        batch = self._outgoing.setdefault(parser, {})
        pending = batch.get((request_id, choice))
        if pending is None or pending.attempt != attempt:
            pending = batch[request_id, choice] = _Pending(attempt)
        pending.texts.append(text)
        pending.ends.extend(token_ends)
        pending.final |= final
        if not self._is_flush_planned:
            self._is_flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self, parser: Peer, request_id: str, attempt: int) -> None:
        """End a session; idempotent."""
        sessions = self._sessions.get(parser)
        if sessions is None or sessions.pop(request_id, None) is None:
            return
        for key in [key for key in self._outgoing.get(parser, {}) if key[0] == request_id]:
            del self._outgoing[parser][key]
        self._wire.send(parser, bridge.close_parse(request_id, attempt))

    def on_peer_ready(self, peer: Peer) -> None:
        """A parser takes work: for the first time, or again after a silence."""
        self._sessions.setdefault(peer, {})
        # Who waits now is woken; who comes later waits for the next one.
        self._arrival.set()
        self._arrival = asyncio.Event()

    def on_peer_updated(self, peer: Peer) -> None:
        """Nothing to do: peers are read when one is chosen."""

    def on_peer_lost(self, peer: Peer) -> None:
        """A parser is gone: its sessions learn it and move on, or end."""
        self._outgoing.pop(peer, None)
        sessions = self._sessions.pop(peer, {})
        lost = WorkerLostError("The parser of this request was lost; please try again.")
        for (request_id, _), (asked, future) in list(self._opening.items()):
            if asked is peer:
                sessions.pop(request_id, None)  # its opener learns it by itself
                if not future.done():
                    future.set_exception(lost)
        for request_id, sink in list(sessions.items()):
            self._deliver(request_id, sink, partial(sink.on_parse_failure, lost))

    def on_event(self, peer: Peer, event: ParserEvent) -> None:
        """A message about sessions."""
        if isinstance(event, ParsedBatch):
            sessions = self._sessions.get(peer, {})
            for parsed in event.deltas:
                sink = sessions.get(parsed.request_id)
                if sink is not None and sink.attempt == parsed.attempt:
                    self._deliver(
                        parsed.request_id,
                        sink,
                        partial(sink.on_parsed, parsed),
                    )
        elif isinstance(event, ParseOpened):
            self._resolve(peer, event.request_id, event.attempt, event)
        elif isinstance(event, Failure):
            self._on_failure(peer, event)

    def _on_failure(self, peer: Peer, failure: Failure) -> None:
        error = RemoteFailureError.from_message(failure)
        self._records.note(peer, failure=error)
        sink = self._sessions.get(peer, {}).get(failure.request_id)
        if sink is None or failure.attempt not in (0, sink.attempt):
            return  # 0: refused before anybody looked into it
        if self._resolve(peer, failure.request_id, sink.attempt, error):
            return
        # What waits for the parser would only fail again; and it may have the session still.
        self.close(peer, failure.request_id, sink.attempt)
        key = (failure.request_id, sink.attempt)
        if key in self._opening:
            self._spoilt[key] = error  # its opener is about to read that it was opened
        else:
            news = partial(sink.on_parse_failure, error)
            self._deliver(failure.request_id, sink, news)

    def _deliver(self, request_id: str, sink: ParseSink, news: Callable[[], None]) -> None:
        """Tell one request; whatever it raises is its own trouble."""
        try:
            news()
        except Exception:
            _logger.exception("request %s failed while parsed text was delivered", request_id)
            try:
                sink.on_parse_failure(GatewayError("Internal server error."))
            except Exception:
                _logger.exception("request %s could not be ended", request_id)

    def _resolve(
        self, peer: Peer, request_id: str, attempt: int, outcome: ParseOpened | GatewayError
    ) -> bool:
        asked, future = self._opening.get((request_id, attempt), (None, None))
        if future is None or asked is not peer or future.done():
            return False
        if isinstance(outcome, ParseOpened):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
        return True

    def _choose(self, message: OpenParse) -> Peer:
        ready = [peer for peer in self._sessions if peer.takes_work]
        if not ready:
            raise WorkerUnavailableError("No parser is available at the moment; please try again.")
        able = [peer for peer in ready if _knows(peer, message)]
        if not able:
            wanted = " and ".join(
                f"`{name}`" for name in (message.tool_format, message.reasoning_format) if name
            )
            raise WorkerUnavailableError(f"No connected parser knows the format {wanted}.")
        return min(able, key=lambda peer: len(self._sessions[peer]))

    def _flush(self) -> None:
        self._is_flush_planned = False
        outgoing, self._outgoing = self._outgoing, {}
        for parser, batch in outgoing.items():
            deltas = [
                bridge.parse_delta(
                    request_id,
                    choice,
                    pending.attempt,
                    pending.texts,
                    pending.ends,
                    final=pending.final,
                )
                for (request_id, choice), pending in batch.items()
            ]
            if deltas:
                self._wire.send(parser, bridge.parse_batch(deltas))


def _knows(peer: Peer, message: OpenParse) -> bool:
    offer = peer.parser
    return (
        offer is not None
        and knows_format(message.tool_format, offer.tool_formats)
        and knows_format(message.reasoning_format, offer.reasoning_formats)
    )


def knows_format(name: str | None, offered: Collection[str]) -> bool:
    """Whether a format is offered; `name:suffix` is `name` with a suffix in its tags."""
    return name is None or name in offered or name.partition(":")[0] in offered
