"""Parsing a whole text as a kind of work: by a parser worker, in pieces, replayed if it dies."""

import asyncio
from dataclasses import dataclass, field

from gateway import bridge
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError
from gateway.request.lifecycle.work import SimpleWork
from gateway.workers.parsers import ParserLink
from protocol.errors import ErrorCode
from protocol.wire.messages import OpenParse, ParsedDelta

PIECE_CHARACTERS = 16_384
"""A parser answers a piece at once and whole, so it must be short beside its other work."""
MAX_ATTEMPTS = 3


@dataclass
class ParsedCall:
    """A tool call in a text.

    Attributes:
        arguments: JSON text, as far as the text went.
    """

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class TextParse:
    """One text on its way through a parser (`ParseSink`).

    Args:
        parsers: Where it is parsed.
        opening: The session, of one choice.

    Attributes:
        content: Pieces of the answer.
        reasoning: Pieces of the reasoning.
        calls: The tool calls, in order.
        num_malformed: Calls that broke, or were cut off, after their name was out.
        was_opened: A parser took the text.
    """

    def __init__(self, parsers: ParserLink, opening: OpenParse) -> None:
        self.attempt = opening.attempt
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ParsedCall] = []
        self.num_malformed = 0
        self.was_opened = False
        self._parsers = parsers
        self._opening = opening
        self._answered: asyncio.Future[None] | None = None
        self._failure: GatewayError | None = None

    async def run(self, text: str) -> None:
        """Parses the text; what was found stands in the attributes afterwards.

        Raises:
            GatewayError: The parser refused it or was lost, or none is there.
        """
        parser, _ = await self._parsers.open(self._opening, self)
        self.was_opened = True
        try:
            for start in range(0, max(1, len(text)), PIECE_CHARACTERS):
                if self._failure is not None:
                    raise self._failure  # it came right behind the last answer
                piece = text[start : start + PIECE_CHARACTERS]
                self._answered = asyncio.get_running_loop().create_future()
                self._parsers.feed(
                    parser,
                    self._opening.request_id,
                    0,
                    self.attempt,
                    piece,
                    final=start + PIECE_CHARACTERS >= len(text),
                )
                await self._answered
        finally:
            self._parsers.close(parser, self._opening.request_id, self.attempt)

    def on_parsed(self, parsed: ParsedDelta) -> None:
        """What a piece yielded."""
        for event in parsed.events:
            match event.kind:
                case "content":
                    self.content.append(event.text)
                case "reasoning":
                    self.reasoning.append(event.text)
                case "tool_call_start":
                    self.calls.append(ParsedCall(event.id, event.name))
                case "tool_call_arguments":
                    if 0 <= event.index < len(self.calls):  # a foreign parser says anything
                        self.calls[event.index].arguments.append(event.text)
        self.num_malformed = parsed.num_malformed
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def on_parse_failure(self, error: GatewayError) -> None:
        """The parser gave up, or was lost."""
        self._failure = error
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


class ParseWork(SimpleWork):
    """One text to be told apart into content, reasoning and calls.

    Args:
        endpoint: The route template.
        opening: The session, of one choice.
        text: Of the model.
        parsers: Where it is parsed.

    Attributes:
        parse: What was found; only after the start.
    """

    def __init__(self, endpoint: str, opening: OpenParse, text: str, parsers: ParserLink) -> None:
        self.endpoint = endpoint
        self.model = ""
        self.parse = TextParse(parsers, opening)
        self._opening = opening
        self._text = text
        self._parsers = parsers
        self._was_opened = False

    async def run(self) -> None:
        """Parse; another parser begins again when one is lost.

        Raises:
            GatewayError: No parser is there, or it refused.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            opening = bridge.with_attempt(self._opening, attempt)
            self.parse = TextParse(self._parsers, opening)
            try:
                await self.parse.run(self._text)
                break
            except (WorkerLostError, RemoteFailureError) as error:
                self._was_opened |= self.parse.was_opened
                if attempt == MAX_ATTEMPTS or not _is_lost(error):
                    raise
        self.owner.end("finished")

    @property
    def has_begun(self) -> bool:
        """Whether a parser took the text."""
        return self._was_opened or self.parse.was_opened


def _is_lost(error: GatewayError) -> bool:
    return isinstance(error, WorkerLostError) or error.code is ErrorCode.UNKNOWN_REQUEST
