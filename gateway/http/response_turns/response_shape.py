"""Answers of Responses, whoever asked for them: a request, a WebSocket, a background job."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.http.answers.responses import Answering
from gateway.http.errors.error_table import limit_headers
from gateway.http.openresponses.already_told import AlreadyTold
from gateway.http.openresponses.conversation import EMPTY
from gateway.http.openresponses.convert import AskedResponse, ResponsesBody
from gateway.http.openresponses.hosted import HostedTool
from gateway.http.openresponses.item_maker import ItemMaker
from gateway.http.openresponses.render import (
    FinalResponse,
    ResponseCollector,
    ResponseEvents,
    ResponseHead,
    ResponseStreamRenderer,
)
from gateway.http.openresponses.stored_items import base_of
from gateway.http.response_turns.stored_turns import StoredTurn
from protocol.wire.messages import LimitState


class ResponseShape:
    """Answers to one request (`AnswerShape`).

    Args:
        asked: What is asked for, with its body.
        turn: Stores the answer.
        wall_clock: Unix seconds.
        hosted: Tools that this server runs; they may be listed later.
    """

    def __init__(
        self,
        asked: AskedResponse,
        turn: StoredTurn,
        wall_clock: Callable[[], float],
        hosted: Mapping[str, HostedTool] = EMPTY,
    ) -> None:
        self._asked = asked
        self._body = body_of(asked)
        self._turn = turn
        self._clock = wall_clock
        self._created = int(wall_clock())
        self._hosted = hosted
        self._teller: ResponseCollector | ResponseStreamRenderer | ResponseEvents | None = None

    @property
    def final(self) -> FinalResponse | None:
        """What the response came to."""
        return None if self._teller is None else self._teller.final

    def limit_headers(self, limits: LimitState) -> dict[str, str]:
        """Where the caller stands in its limits."""
        return limit_headers(limits)

    def collector(self, request: Answering, work: object) -> ResponseCollector:
        """For a whole answer."""
        self._teller = collector = ResponseCollector(self._head(request), self._maker())
        return collector

    def renderer(self, request: Answering, work: object) -> ResponseStreamRenderer:
        """For a stream."""
        self._teller = renderer = ResponseStreamRenderer(self._head(request), self._maker())
        return renderer

    def events(self, request: Answering) -> ResponseEvents:
        """For a WebSocket."""
        self._teller = events = ResponseEvents(self._head(request), self._maker())
        return events

    def prepared(self, response_id: str) -> ResponseEvents:
        """For a response without output, which nobody makes."""
        head = response_head(response_id, self._created, self._body, self._clock)
        return ResponseEvents(head, item_maker(response_id, self._body))

    async def keep(self, request: Answering) -> None:
        """Store the response, if it is to be stored.

        Raises:
            GatewayError: It can't be.
        """
        final, identity, teller = self.final, request.identity, self._teller
        if final is not None and identity is not None:
            script = b"" if teller is None or not self._asked.is_stored else teller.script
            await self._turn.keep(identity.tenant, self._created, final, self._asked, script)

    def close(self) -> None:
        """Release what is held."""
        self._turn.close()

    def _head(self, request: Answering) -> ResponseHead:
        head = response_head(self._turn.response_id, self._created, self._body, self._clock)
        # Who answers, whatever was asked for.
        return replace(head, model=request.model, spent=request.usage)

    def _maker(self) -> ItemMaker:
        # A fallback's request has an id of its own; items are found by that of their response.
        return item_maker(base_of(self._turn.response_id), self._body, self._hosted)


def body_of(asked: AskedResponse) -> ResponsesBody:
    """What is asked for, once everything that it names was read."""
    assert asked.body is not None, "what it names was read"
    return asked.body


def response_head(
    response_id: str,
    created: int,
    body: ResponsesBody,
    wall_clock: Callable[[], float],
    first_number: int = 0,
    told: AlreadyTold | None = None,
) -> ResponseHead:
    """What a response says of itself."""
    return ResponseHead(
        response_id, created, body.job.model, body.echo_json, wall_clock, first_number, told
    )


def item_maker(
    request_id: str,
    body: ResponsesBody,
    hosted: Mapping[str, HostedTool] = EMPTY,
    num_made: int = 0,
) -> ItemMaker:
    """What makes its items."""
    return ItemMaker(
        request_id,
        body.job.options,
        body.spaces,
        seals_reasoning=body.seals_reasoning,
        hosted=hosted,
        names=body.names,
        num_made=num_made,
    )
