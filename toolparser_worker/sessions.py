"""The requests that are being parsed: opened, fed, expired, bounded in number."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from msgspec import structs

from protocol.runtime.tracing import Value, tell_step
from protocol.wire.messages import OpenParse, ParsedDelta, ParseDelta, ParseEvent, Thought
from toolparser_worker.errors import InvalidDeltaError, ParserError, TooManySessionsError
from toolparser_worker.formats import NO_FORMAT, find_reasoning_format, find_tool_format
from toolparser_worker.grammar.request import Wish, request_grammar
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.declarations import (
    MessageFraming,
    ReasoningFormat,
    ToolFormat,
    special_texts,
)
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.tool_schemas import ToolSchemas
from toolparser_worker.metrics import FormatCounts
from toolparser_worker.tools import (
    MAX_TOOLS_BYTES,
    Tools,
    ToolsTable,
    check_choice,
    read_tools,
)

MAX_CHOICES = 1024
"""The most choices that one request may have."""

SessionKey = tuple[str, str, int]
"""Gateway, request and attempt: two gateways never share a session, nor do two attempts."""


class Session:
    """The machines of one request, one for each choice that has sent text.

    Args:
        opening: What the gateway asked for.
        tools: The tools in it.

    Attributes:
        tools: As given.
        format_names: The declared names of its tool format and its reasoning format.
        num_choices: Choices that may send text.
        trace_id: The client's `X-Request-ID`, for logs.
        traceparent: Where in a trace it belongs; empty when it isn't traced.
        opened_at: On the store's clock.
        num_deltas: That were parsed.
        counts: Where its deltas are counted.
        keep_special_tokens: Markers that the engine must leave in the text.
        grammar: What the engine has to hold the text to, if anything.
        thought: How its reasoning can be ended; None where no marker does.
        last_used_s: When it was last opened or fed, on the store's clock.

    Raises:
        ParserError: Unknown formats, tools that are none, or too many choices.
    """

    def __init__(self, opening: OpenParse, tools: Tools) -> None:
        if not 1 <= opening.num_choices <= MAX_CHOICES:
            raise ParserError(
                f"n must be between 1 and {MAX_CHOICES}, not {opening.num_choices}.", param="n"
            )
        tool_format = find_tool_format(opening.tool_format)
        reasoning_format = find_reasoning_format(opening.reasoning_format)
        check_choice(tools, opening.tool_choice, opening.tool_name)
        if reasoning_format is not None:
            tail = reasoning_format.tail(opening.prompt_tail, opening.answer_so_far)
            opening = structs.replace(opening, prompt_tail=tail)
        has_none = opening.tools_json is not None and not tools.names
        if has_none or opening.tool_choice == "none":
            tool_format = None
        self.tools = tools
        self.format_names = (
            tool_format.name if tool_format is not None else NO_FORMAT,
            reasoning_format.name if reasoning_format is not None else NO_FORMAT,
        )
        self._schemas = tools.schemas if tool_format is not None else ToolSchemas()
        self._id_style = tool_format.id_style if tool_format is not None else "call"
        self._request_id = opening.request_id
        self.num_choices = opening.num_choices
        self.trace_id = opening.trace_id
        self.traceparent = opening.traceparent
        self.opened_at = 0.0
        self.num_deltas = 0
        self.counts = FormatCounts()
        self._prompt_tail = opening.prompt_tail
        self._thinking = opening.thinking
        self._parallel_tool_calls = opening.parallel_tool_calls
        self._tool_format = tool_format
        self._reasoning_format = reasoning_format
        self._machines: dict[int, Machine] = {}
        self._finished: set[int] = set()
        self.keep_special_tokens = special_texts(
            marker
            for declared in (tool_format, reasoning_format)
            if declared is not None
            for marker in declared.markers
        )
        self.grammar = request_grammar(
            tool_format, reasoning_format, _wish(opening, has_tools=tool_format is not None)
        )
        self.thought = _thought(tool_format, reasoning_format, opening)
        self.last_used_s = 0.0

    def parse(self, delta: ParseDelta) -> ParsedDelta:
        """Feeds the text of one choice.

        Raises:
            InvalidDeltaError: There is no such choice, or it has ended.
        """
        choice = delta.choice
        self.num_deltas += 1
        if not 0 <= choice < self.num_choices:
            raise InvalidDeltaError(
                f"There is no choice {choice}; the request has {self.num_choices}."
            )
        if choice in self._finished:
            raise InvalidDeltaError(f"Choice {choice} has ended and takes no more text.")
        machine = self._machines.get(choice)
        if machine is None:
            machine = self._machines[choice] = self._new_machine(choice)
        num_malformed = machine.num_malformed
        events: tuple[ParseEvent, ...] = machine.feed(delta.text, delta.token_ends)
        if delta.final:
            events += machine.finish()
            self._finished.add(choice)
            del self._machines[choice]
        counts = self.counts
        counts.num_deltas += 1
        counts.num_events += len(events)
        counts.num_malformed += machine.num_malformed - num_malformed
        return ParsedDelta(
            request_id=delta.request_id,
            choice=choice,
            attempt=delta.attempt,
            events=events,
            num_reasoning_tokens=machine.num_reasoning_tokens,
            num_malformed=machine.num_malformed,
            final=delta.final,
        )

    def _new_machine(self, choice: int) -> Machine:
        return Machine(
            tool_format=self._tool_format,
            reasoning_format=self._reasoning_format,
            call_id=lambda index, name: call_id(
                self._request_id, choice, index, name=name, style=self._id_style
            ),
            tools=self._schemas,
            prompt_tail=self._prompt_tail,
            thinking=self._thinking,
            parallel_tool_calls=self._parallel_tool_calls,
        )


def _thought(
    tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None, opening: OpenParse
) -> Thought | None:
    """How the output's reasoning can be ended; None where no marker does."""
    declared = reasoning_format
    if declared is None or not declared.closing:
        return None
    if declared.framing is not None:
        return _thought_in_messages(declared, declared.framing, may_call=tool_format is not None)
    ends = (*declared.ends, *declared.interrupted_by)
    if tool_format is not None and declared.calls_end_it:
        # No text is put into what may be a call.
        ends += tool_format.wrapper_starts
        ends += tuple(start for body in tool_format.bodies for start in body.starts)
    return Thought(
        begins=declared.begins(opening.prompt_tail, thinking=opening.thinking),
        ends=tuple(dict.fromkeys(end for end in ends if end.strip())),
        closing=declared.closing,
        starts=declared.starts if declared.reopens else declared.starts + declared.first_starts,
        reopens=declared.reopens,
    )


def _thought_in_messages(
    declared: ReasoningFormat, framing: MessageFraming, *, may_call: bool
) -> Thought:
    """The same for text that is made of messages, where what follows needs a header of its own.

    Where tools may be called the model chooses that header, or a grammar does, unless what it
    chooses is reasoning again.
    """
    answer = declared.closing + framing.rendered_content
    return Thought(
        begins="marked",
        ends=framing.ends + framing.starts,
        closing=declared.closing if may_call else answer,
        starts=declared.headers,
        reopens=True,
        # What the text begins with is the rest of a header that the prompt began.
        before=framing.starts[0],
        closing_again=answer,
    )


def _wish(opening: OpenParse, *, has_tools: bool) -> Wish:
    listed = opening.tools_json if has_tools else None
    return Wish(
        tools=read_tools(listed) if listed is not None else (),
        tool_choice=opening.tool_choice,
        tool_name=opening.tool_name,
        parallel_tool_calls=opening.parallel_tool_calls,
        prompt_tail=opening.prompt_tail,
        thinking=opening.thinking,
        response=opening.response_grammar,
    )


class SessionStore:
    """All open sessions, the least recently used first.

    Args:
        max_sessions: Choices of open requests; more are refused.
        idle_timeout_s: A session that got no text for so long is forgotten.
        clock: Monotonic seconds.
        max_tools_bytes: JSON text of different tools that may be held at once.
    """

    def __init__(
        self,
        *,
        max_sessions: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
        max_tools_bytes: int = MAX_TOOLS_BYTES,
    ) -> None:
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._num_choices = 0
        self._tools = ToolsTable(max_tools_bytes)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[SessionKey]:
        return iter(tuple(self._sessions))

    def open(self, key: SessionKey, opening: OpenParse) -> Session:
        """Begins a session; one of the same key begins again.

        Raises:
            ParserError: The opening is wrong, or there are too many sessions.
        """
        self.expire()
        self.close(key)
        if self._num_choices + opening.num_choices > self._max_sessions:
            raise TooManySessionsError(
                f"The parser has {self._num_choices} choices of requests open, takes at most "
                f"{self._max_sessions} and no more for now."
            )
        tools = self._tools.acquire(opening.tools_json)
        try:
            session = Session(opening, tools)
        except BaseException:
            # Whatever it is: tools that nobody gives back fill the table for good.
            self._tools.release(tools)
            raise
        self._sessions[key] = session
        self._num_choices += session.num_choices
        session.opened_at = session.last_used_s = self._clock()
        self._sessions.move_to_end(key)
        return session

    def now_s(self) -> float:
        """The store's clock, seconds."""
        return self._clock()

    def find(self, key: SessionKey, now_s: float) -> Session | None:
        """The session, which counts as used now; None when there is none (any more)."""
        session = self._sessions.get(key)
        if session is not None:
            session.last_used_s = now_s
            self._sessions.move_to_end(key)
        return session

    def close(self, key: SessionKey) -> None:
        """Forgets a session; one that is not there is fine."""
        session = self._sessions.pop(key, None)
        if session is not None:
            self._num_choices -= session.num_choices
            self._tools.release(session.tools)
            if session.traceparent:
                self._tell(session)

    def _tell(self, session: Session) -> None:
        """A session that is over, for the trace of its request."""
        tool_format, reasoning_format = session.format_names
        about: dict[str, Value] = {
            "penstock.tool_format": tool_format,
            "penstock.reasoning_format": reasoning_format,
            "penstock.deltas": session.num_deltas,
        }
        tell_step(session.traceparent, "parse", session.opened_at, self._clock(), about)

    def close_gateway(self, gateway_id: str) -> int:
        """Forgets every session of a gateway.

        Returns:
            How many there were.
        """
        keys = [key for key in self._sessions if key[0] == gateway_id]
        for key in keys:
            self.close(key)
        return len(keys)

    def expire(self) -> int:
        """Forgets the sessions that have been idle for too long.

        Returns:
            How many there were.
        """
        oldest_s = self._clock() - self._idle_timeout_s
        num_expired = 0
        while self._sessions:
            key, session = next(iter(self._sessions.items()))
            if session.last_used_s > oldest_s:
                break
            self.close(key)
            num_expired += 1
        return num_expired
