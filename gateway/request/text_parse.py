"""Parses one whole text through a parser worker, in pieces so that streams need not wait."""

import asyncio
from dataclasses import dataclass, field

from gateway.errors import GatewayError
from gateway.workers.parsers import ParserLink
from protocol.wire.messages import OpenParse, ParsedDelta

PIECE_CHARACTERS = 16_384
"""A parser answers a piece at once and whole, so it must be short beside its other work."""


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
    """

    def __init__(self, parsers: ParserLink, opening: OpenParse) -> None:
        self.attempt = opening.attempt
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ParsedCall] = []
        self.num_malformed = 0
        self._parsers = parsers
        self._opening = opening
        self._answered: asyncio.Future[None] | None = None

    async def run(self, text: str) -> None:
        """Parses the text; what was found stands in the attributes afterwards.

        Raises:
            GatewayError: The parser refused it or was lost, or none is there.
        """
        parser, _ = await self._parsers.open(self._opening, self)
        try:
            for start in range(0, max(1, len(text)), PIECE_CHARACTERS):
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
                    self.calls[event.index].arguments.append(event.text)
        self.num_malformed = parsed.num_malformed
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def on_parse_failure(self, error: GatewayError) -> None:
        """The parser gave up, or was lost."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
