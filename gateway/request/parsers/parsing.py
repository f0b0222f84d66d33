"""One request's text on its way through a parser, replayed to another when the first dies."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from gateway import bridge
from gateway.errors import (
    GatewayError,
    RemoteFailureError,
    UnsupportedFieldError,
    WorkerLostError,
    WorkerUnavailableError,
)
from gateway.request.delivery.events import (
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.job import GenerationJob
from gateway.request.parsers.token_spans import TokenSpans
from gateway.workers.parsers import ParserLink
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Delta,
    EngineOffer,
    OpenParse,
    ParsedDelta,
    ParseEvent,
    ParseOpened,
)
from protocol.wire.peers import Peer

_logger = logging.getLogger("penstock.gateway.parsing")

MAX_FRUITLESS = 3
"""So many parsers may be lost over the same text; then it is the text."""
_PAUSE_S = 0.2
_LATER = frozenset({ErrorCode.WORKER_UNAVAILABLE, ErrorCode.OVERLOADED})


def parse_opening(
    job: GenerationJob, offer: EngineOffer, request_id: str, trace_id: str, traceparent: str = ""
) -> OpenParse | None:
    """The parser session that a request needs; None when its text needs no parsing.

    Raises:
        UnsupportedFieldError: It wants tools or reasoning of a model that has neither.
    """
    if job.tools_json is not None and offer.tool_format is None:
        raise UnsupportedFieldError(
            f"No tool-call format is known for the model `{job.model}`, so it can't be given "
            "tools.",
            param="tools",
        )
    if job.wants_reasoning and offer.reasoning_format is None:
        raise UnsupportedFieldError(
            f"The model `{job.model}` has no reasoning that could be controlled.",
            param="reasoning_effort",
        )
    tool_format = offer.tool_format if job.tools_json is not None else None
    reasoning_format = offer.reasoning_format if job.parse_reasoning else None
    if tool_format is None and reasoning_format is None:
        return None
    return bridge.open_parse(
        job.attempt_id(request_id),
        num_choices=job.options.num_choices,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools_json=job.enforced_tools_json,
        tool_choice=job.tool_choice,
        tool_name=job.tool_name,
        parallel_tool_calls=job.parallel_tool_calls,
        response_grammar=job.response_grammar,
        thinking=job.thinking,
        answer_so_far=job.answer_so_far,
        trace_id=trace_id,
        traceparent=traceparent,
    )


class _Choice:
    """The text of one choice so far, and how much of each channel the client already has."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ends: list[int] = []
        self.num_characters = 0
        self.spans = TokenSpans()
        self.is_final = False
        self.num_started_calls = 0
        self.num_completed_calls = 0
        self.num_reasoning_tokens = 0
        self.num_malformed = 0
        # Characters by channel: seen from the present parser, and sent on in all.
        self._seen: dict[tuple[str, int], int] = {}
        self._sent: dict[tuple[str, int], int] = {}

    def restart(self) -> None:
        """Another parser begins with the first character again."""
        self._seen.clear()

    def fresh(self, kind: str, index: int, text: str) -> str:
        """The part of an event's text that was not sent on before a replay."""
        key = (kind, index)
        seen = self._seen.get(key, 0)
        sent = self._sent.get(key, 0)
        self._seen[key] = seen + len(text)
        if seen + len(text) <= sent:
            return ""
        self._sent[key] = seen + len(text)
        return text[sent - seen :] if seen < sent else text


class ParseSession:
    """Feeds a request's choices to a parser and emits events, each exactly once.

    It is long because it also replays to another parser what one that died had.

    Args:
        parsers: Where the sessions are opened.
        opening: The session; its attempt grows with each replay.
        emit: Called with each event.
        on_choice_done: Called with a choice after the last of its events.
        on_failed: Called when the parser gives up.
        spawn: Runs something beside the request, which ends with it.

    Attributes:
        num_replayed: How often the text was sent again to another parser.
    """

    def __init__(
        self,
        parsers: ParserLink,
        opening: OpenParse,
        *,
        emit: Callable[[GenerationEvent], None],
        on_choice_done: Callable[[int], None],
        on_failed: Callable[[GatewayError], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.attempt = opening.attempt
        self._parsers = parsers
        self._opening = opening
        self._emit = emit
        self._on_choice_done = on_choice_done
        self._on_failed = on_failed
        self._spawn = spawn
        self._choices = [_Choice() for _ in range(opening.num_choices)]
        self._parser: Peer | None = None
        self.num_replayed = 0
        self._num_fruitless = 0
        self._is_unanswered = False
        self._is_closed = False

    async def open(self) -> ParseOpened:
        """Open the session before anything is generated.

        Raises:
            GatewayError: No parser is there, or it refused.
        """
        while True:
            try:
                self._parser, opened = await self._parsers.open(self._message(), self)
                return opened
            except WorkerLostError:
                self._count_loss()
                self.attempt += 1

    def feed(self, choice: int, delta: Delta) -> None:
        """New output of a choice."""
        state = self._choices[choice]
        state.texts.append(delta.text)
        state.token_ends.extend(delta.token_ends)
        state.num_characters += len(delta.text)
        if delta.logprobs:
            state.spans.add(state.num_characters, delta.token_ends, delta.logprobs)
        self._forward(choice, delta.text, delta.token_ends, final=False)

    def finish(self, choice: int) -> None:
        """No more text of a choice; `on_choice_done` follows."""
        self._choices[choice].is_final = True
        self._forward(choice, "", (), final=True)

    def num_completed_calls(self, choice: int) -> int:
        """Tool calls of a choice that are whole."""
        return self._choices[choice].num_completed_calls

    def is_call_cut(self, choice: int) -> bool:
        """Whether a tool call of a choice has no end."""
        state = self._choices[choice]
        return state.num_started_calls > state.num_completed_calls

    def num_reasoning_tokens(self, choice: int) -> int:
        """Tokens of reasoning of a choice so far."""
        return self._choices[choice].num_reasoning_tokens

    @property
    def num_malformed(self) -> int:
        """Calls that broke their format after the name was out."""
        return sum(choice.num_malformed for choice in self._choices)

    def close(self) -> None:
        """Forget the session here and at the parser; idempotent."""
        self._is_closed = True
        if self._parser is not None:
            self._parsers.close(self._parser, self._opening.request_id, self.attempt)
            self._parser = None

    def on_parsed(self, parsed: ParsedDelta) -> None:
        """What one piece of text yielded."""
        if self._is_closed or not 0 <= parsed.choice < len(self._choices):
            return
        self._num_fruitless = 0
        self._is_unanswered = False
        state = self._choices[parsed.choice]
        for event in parsed.events:
            self._on_event(parsed.choice, state, event)
        state.num_reasoning_tokens = parsed.num_reasoning_tokens
        state.num_malformed = parsed.num_malformed
        if parsed.final:
            rest = state.spans.take_rest()
            if rest:
                self._emit(ContentText(parsed.choice, "", rest))
            self._on_choice_done(parsed.choice)

    def on_parse_failure(self, error: GatewayError) -> None:
        """The parser was lost, or lost the session: replay to another; it gave up: so do we."""
        if self._is_closed:
            return
        if not isinstance(error, WorkerLostError) and error.code is not ErrorCode.UNKNOWN_REQUEST:
            self._on_failed(error)
            return
        self._parser = None
        _logger.info("request %s goes to another toolparser", self._opening.request_id)
        self._spawn(self._replay_elsewhere())

    def _on_event(self, choice: int, state: _Choice, event: ParseEvent) -> None:
        if event.kind == "content":
            logprobs = state.spans.take(event.start, event.end)
            text = state.fresh(event.kind, event.index, event.text)
            if text or logprobs:
                self._emit(ContentText(choice, text, logprobs))
            return
        state.spans.leave_content()
        # One character stands for the start and one for the end: they are counted like text.
        if event.kind == "tool_call_end":
            state.num_completed_calls += len(state.fresh(event.kind, event.index, "$"))
            return
        if event.kind == "tool_call_start":
            if state.fresh(event.kind, event.index, "^"):
                state.num_started_calls += 1
                self._emit(ToolCallStarted(choice, event.index, event.id, event.name))
            return
        text = state.fresh(event.kind, event.index, event.text)
        if not text:
            return
        if event.kind == "reasoning":
            self._emit(ReasoningText(choice, text))
        else:
            self._emit(ToolCallArguments(choice, event.index, text))

    async def _replay_elsewhere(self) -> None:
        """Open the session at another parser, however long that takes, and send all text again.

        Raises:
            GatewayError: No parser can go on.
        """
        if self._is_unanswered:
            self._count_loss()
        while self._parser is None:
            await self._reopen()
        self.num_replayed += 1
        for choice, state in enumerate(self._choices):
            state.restart()
            if state.texts or state.is_final:
                text, ends = "".join(state.texts), tuple(state.token_ends)
                self._forward(choice, text, ends, final=state.is_final)

    async def _reopen(self) -> None:
        """Try once, and wait after a failure that may pass.

        Raises:
            GatewayError: It will not pass.
        """
        self.attempt += 1
        try:
            self._parser, _ = await self._parsers.open(self._message(), self)
        except WorkerLostError:
            self._count_loss()
        except WorkerUnavailableError:
            await self._parsers.arrival()
        except RemoteFailureError as error:
            if error.code not in _LATER:
                raise
            await asyncio.sleep(_PAUSE_S)

    def _count_loss(self) -> None:
        self._num_fruitless += 1
        if self._num_fruitless > MAX_FRUITLESS:
            raise WorkerLostError("The parsers of this request were lost; please try again.")

    def _message(self) -> OpenParse:
        return bridge.with_attempt(self._opening, self.attempt)

    def _forward(self, choice: int, text: str, token_ends: tuple[int, ...], *, final: bool) -> None:
        # During a replay the text only gathers; it leaves with the replay.
        if self._parser is not None:
            self._is_unanswered = True
            self._parsers.feed(
                self._parser,
                self._opening.request_id,
                choice,
                self.attempt,
                text,
                token_ends,
                final=final,
            )
