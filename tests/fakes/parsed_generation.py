"""A generation whose text passes a parser; the test plays the engine and the parsers."""

from typing import Any

from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Failure,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseEvent,
    ParseOpened,
    Prepare,
)
from protocol.wire.peers import Peer
from tests.fakes.request_parts import Generation, Parts, generation_job
from tests.fakes.virtual_time import idle


def content(text: str, start: int = 0) -> ParseEvent:
    return ParseEvent(kind="content", text=text, start=start, end=start + len(text))


class Parsed:
    """A generation whose text passes a parser, and the engine and the parsers that the test
    plays."""

    def __init__(self, **job: Any) -> None:
        self.parts = Parts()
        self.engine = self.parts.engine(tool_format="hermes", reasoning_format="think")
        self.job = generation_job(**{"tools_json": "[]", "tool_choice": "auto", **job})
        self.started: Generation | None = None

    async def opening(self) -> Generation:
        """The generation waits for its parser."""
        self.started = await self.parts.generation(self.job)
        await self.parts.grant()
        for _ in self.parts.engine_wire.of(Prepare):
            await self.parts.prepare_next(prompt_tail="tail")
        return self.started

    async def opened(self, one: Peer, attempt: int = 1, **fields: Any) -> None:
        message = ParseOpened(request_id="r", attempt=attempt, **fields)
        self.parts.parsers.on_event(one, message)
        await idle()

    async def running(self, one: Peer) -> Generation:
        started = await self.opening()
        await self.opened(one)
        await started.task
        await idle()
        return started

    async def parsed(
        self, one: Peer, *events: ParseEvent, attempt: int = 1, choice: int = 0, **fields: Any
    ) -> None:
        delta = ParsedDelta(request_id="r", choice=choice, attempt=attempt, events=events, **fields)
        self.parts.parsers.on_event(one, ParsedBatch(deltas=(delta,)))
        await idle()

    async def fail(self, one: Peer, code: ErrorCode, attempt: int = 0) -> None:
        failure = Failure(request_id="r", code=code, message="no", attempt=attempt)
        self.parts.parsers.on_event(one, failure)
        await idle()

    async def lose(self, one: Peer) -> None:
        self.parts.parsers.on_peer_lost(one)
        await idle()

    def openings(self) -> list[int]:
        return [opening.attempt for opening in self.parts.parser_wire.of(OpenParse)]

    def fed(self) -> list[tuple[str, int, int, str, tuple[int, ...], bool]]:
        return [
            (
                one.instance_id,
                delta.choice,
                delta.attempt,
                delta.text,
                delta.token_ends,
                delta.final,
            )
            for one, message in self.parts.parser_wire.sent
            if isinstance(message, ParseBatch)
            for delta in message.deltas
        ]
