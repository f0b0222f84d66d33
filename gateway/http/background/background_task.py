"""What a background response is made from, as the store keeps it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from gateway.http.openresponses.convert import AskedResponse
from gateway.http.openresponses.render import (
    FinalResponse,
    ResponseEvents,
    ToldEvent,
    usage_object,
)
from gateway.http.openresponses.stored_items import base_of
from gateway.http.response_turns.response_shape import body_of, item_maker, response_head
from gateway.http.response_turns.stored_turns import ReadContext, off_loop
from gateway.json_numbers import loads
from gateway.request.callers.caller import Caller
from gateway.storage.jobs import Cancellation
from gateway.storage.records import EventPiece, StoredResponse
from protocol.runtime.tracing import context_of
from protocol.wire import codec
from protocol.wire.messages import Usage


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """What a job has to know; written to the store as it stands.

    Attributes:
        asked: With its body.
        key_digest: SHA-256 of the caller's key; None without one.
        created: Unix seconds.
        context: For a request that is parsed again: because its oldest items may be left out, or
            because it may have several turns. None for any other.
        traceparent: Where in a trace it belongs; empty where it isn't traced.
        has_blank_summary: Whether an attempt should have summed its context up, and nothing came;
            it isn't tried again.
    """

    asked: AskedResponse
    key_digest: bytes | None
    address: str
    trace_id: str
    end_user: str
    created: int
    context: ReadContext | None
    traceparent: str = ""
    has_blank_summary: bool = False

    def caller(self) -> Caller:
        """Who asked."""
        return Caller(
            self.key_digest,
            self.address,
            self.trace_id,
            end_user=self.end_user,
            trace=context_of(self.traceparent),
        )


_decoder: Final[codec.Decoder[BackgroundTask]] = codec.Decoder(BackgroundTask)


def encoded(task: BackgroundTask) -> bytes:
    """A task for the store."""
    return codec.encode_value(task)


def decoded(task: bytes) -> BackgroundTask:
    """A task of the store.

    Raises:
        DecodeError: It is none.
    """
    return _decoder.decode(task)


def begun(
    response_id: str, asked: AskedResponse, created: int, wall_clock: Callable[[], float]
) -> tuple[FinalResponse, EventPiece]:
    """What a response says while it is queued, and the events that say so."""
    events = ResponseEvents(
        response_head(response_id, created, body_of(asked), wall_clock),
        item_maker(base_of(response_id), body_of(asked)),
    )
    return events.running("queued"), piece_of(events.queued())


def cancelled(response: StoredResponse, number: int, spent: Usage | None = None) -> Cancellation:
    """What a response is that was cancelled, and the event that says so.

    Args:
        response: As it was.
        number: Of the event.
        spent: On it until then; None as long as nobody has said so.
    """
    told = {**loads(response.body), "status": "cancelled"}
    if spent is not None and told.get("usage") is None:
        told["usage"] = usage_object(spent)
    event = {"type": "response.incomplete", "response": told, "sequence_number": number}
    return Cancellation(orjson.dumps(told), orjson.dumps([event]))


async def given_up(response: StoredResponse, number: int) -> tuple[StoredResponse, EventPiece]:
    """What a response is that can't be made, and the event of that number that says so."""
    failed = {
        **await off_loop(len(response.body), lambda: loads(response.body)),
        "status": "failed",
        "error": {
            "code": "server_error",
            "message": "The response could not be made; please ask for it again.",
        },
    }
    event = {"type": "response.failed", "response": failed, "sequence_number": number}
    piece = EventPiece(number, number, orjson.dumps([event]))
    return replace(response, status="failed", body=orjson.dumps(failed)), piece


async def told_events(piece: EventPiece) -> list[dict[str, Any]]:
    """The events of what the store keeps."""
    events: list[dict[str, Any]] = await off_loop(len(piece.body), lambda: loads(piece.body))
    return events


def piece_of(events: Sequence[ToldEvent]) -> EventPiece:
    """Events as the store keeps them."""
    body = b"[" + b",".join(event.body for event in events) + b"]"
    return EventPiece(events[0].number, events[-1].number, body)
