"""A response of several turns of a model: between them tools are called, or it is compacted.

It reads as one generation. Each turn is a request of its own, reserved and settled by itself, and
so is each list of tools and each call: keys, scopes and limits hold for every one of them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from gateway.bridge import Outcome
from gateway.errors import ClientDisconnectedError, GatewayError
from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.openresponses.call_failures import (
    interrupted_call,
    not_offered,
    too_many_calls,
    wrong_call,
)
from gateway.http.openresponses.called_names import meant_event
from gateway.http.openresponses.convert import AskedResponse, ResponsesBody
from gateway.http.openresponses.events import (
    ApprovedCallBegun,
    CompactionBegun,
    CompactionEnded,
    HostedCallEnded,
    HostedCallRunning,
    ResponseEvent,
    TurnOver,
)
from gateway.http.openresponses.hosted import ApprovedCall, HostedTool, Progress, known_list
from gateway.http.openresponses.hosted_items import Earlier, restored_items
from gateway.http.openresponses.render import ResponseCollector
from gateway.http.openresponses.stored_items import base_of
from gateway.http.render.call_arguments import arguments_object
from gateway.http.response_turns.compactor import Compactor
from gateway.http.response_turns.response_shape import body_of, item_maker, response_head
from gateway.http.response_turns.stored_turns import ReadContext, off_loop, shorter_context
from gateway.http.response_turns.tool_asking import MadeCall, ToolAsker, refused_tool
from gateway.http.response_turns.turn_makers import TurnMaker, seeded
from gateway.json_numbers import loads
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import Identity
from gateway.request.delivery.events import (
    ChoiceFinished,
    ToolCallArguments,
    ToolCallStarted,
    usage_of_all,
)
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from gateway.tools.tool_servers import ToolServers
from protocol.wire.messages import LimitState, LimitWarning, Usage

ResultT = TypeVar("ResultT")
Reparse = Callable[[bytes], Awaitable[AskedResponse]]


class HostedTurns:
    """One response, from the lists of tools to its last turn.

    It is long because it is a request and its work at once, as transports read them.

    Args:
        asked: With its body, whose tools nobody has listed yet.
        context: What is parsed again for every turn.
        reparse: Parses it.
        response_id: `resp_…`.
        servers: Whose tools may be used.
        requests: Makes the requests of tools.
        caller: Who asks.
        turns: Makes those of the model.
        max_calls: Of one response.
        wall_clock: Unix seconds.
        outlasts_drain: Whether a drain lets it finish; one that isn't can be taken up again.
        earlier: Of a response that is taken up again.

    Attributes:
        request_id: Of its first turn.
        tools: By the names that the model sees, once they are listed.
        keeps_failure: Whether a tool has been run: then the response is kept even if it fails.
    """

    def __init__(
        self,
        asked: AskedResponse,
        context: ReadContext,
        reparse: Reparse,
        *,
        response_id: str,
        servers: ToolServers,
        requests: RequestFactory,
        caller: Caller,
        turns: TurnMaker,
        max_calls: int,
        wall_clock: Callable[[], float],
        outlasts_drain: bool = True,
        earlier: Earlier | None = None,
    ) -> None:
        body = body_of(asked)
        self.tools: dict[str, HostedTool] = {}
        self.keeps_failure = earlier is not None and earlier.num_turns > 0
        self._asked = asked
        self._context = context
        self._reparse = reparse
        self.request_id = base_of(response_id)
        self._outlasts_drain = outlasts_drain
        self._tools = ToolAsker(servers, requests, caller, self.request_id)
        self._series = requests.series
        self._turns = turns
        self._wanted = body.hosted
        asked_calls = self._wanted.max_calls
        self._max_calls = max_calls if asked_calls is None else min(max_calls, asked_calls)
        self._earlier = before = Earlier() if earlier is None else earlier
        self._num_calls = self._earlier.num_calls
        self._compactor = Compactor(requests, caller, self.request_id, self._earlier)
        self._progress = Progress(num_turns=before.num_turns, num_answers=before.num_answers)
        maker = item_maker(self.request_id, body, self.tools, len(self._earlier.items))
        self._made = ResponseCollector(response_head(response_id, 0, body, wall_clock), maker)
        self._made.restore(restored_items(self._earlier, maker))
        self._max_item_bytes: int | None = None
        self._body: ResponsesBody = body
        self._seed = body.job.sampling.seed
        self._ready: list[ResponseEvent] = []
        self._left_out: list[str] = []
        self._request: Request | None = None
        self._work: GenerationWork | None = None
        self._is_running = False
        self._spent: list[Usage] = []
        self._first_output_s: float | None = None
        self._limits: tuple[LimitState, tuple[LimitWarning, ...]] | None = None
        self._outcome: Outcome | None = None
        self._error: GatewayError | None = None
        self._pending: asyncio.Task[Any] | None = None
        self._flow: AsyncIterator[list[ResponseEvent]] | None = None

    # As a request.

    async def start(self) -> None:
        """List the tools and, unless an approved call comes first, begin the first turn.

        Raises:
            GatewayError: It can't be; nothing was told or run.
        """
        await self._driven(self._start, None)
        self._flow = self._events()
        self._tools.is_continued = self._compactor.is_continued = self._outlasts_drain
        if self._outlasts_drain and self._outcome is None:
            self._series.add(self)

    def end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        """End whatever is under way; idempotent."""
        if self._outcome is None:
            self._outcome, self._error = outcome, error
        self._series.discard(self)
        if self._request is not None:
            self._request.end(outcome, error)
        if self._pending is not None:
            self._pending.cancel()

    def on_client_gone(self) -> None:
        """Nobody is left to answer."""
        self.end("aborted", ClientDisconnectedError("The client disconnected."))

    def fail(self, error: GatewayError) -> None:
        """End it with an error."""
        self.end("failed", error)

    def lease_report(self) -> None:
        """Its turns have leases; it has none."""

    def give_up(self) -> None:
        """Its turns are settled, each by itself; it is not."""

    def release(self) -> None:
        """Whoever asked has read all it wants."""
        if self._request is not None:
            self._request.release()

    @property
    def model(self) -> str:
        """Who answers."""
        return self._body.job.model if self._work is None else self._work.model

    @property
    def identity(self) -> Identity | None:
        """Who the caller turned out to be."""
        own = None if self._request is None else self._request.identity
        return self._tools.identity if own is None else own

    @property
    def limits(self) -> LimitState:
        """Where the caller stood when the first turn was granted."""
        return LimitState() if self._limits is None else self._limits[0]

    @property
    def warnings(self) -> tuple[LimitWarning, ...]:
        """Its limits that were used up to a threshold then."""
        return () if self._limits is None else self._limits[1]

    @property
    def outcome(self) -> Outcome | None:
        """How it ended."""
        return self._outcome

    @property
    def first_output_s(self) -> float | None:
        """Of the first turn."""
        return self._first_output_s

    @property
    def is_in_turn(self) -> bool:
        """Whether the model's turn is under way, or about to begin."""
        return self._is_running

    # As its work.

    @property
    def job(self) -> GenerationJob:
        """Of the turn under way."""
        return self._body.job

    @property
    def unenforced(self) -> tuple[str, ...]:
        """Keywords of schemas that are left to the model."""
        return () if self._work is None else self._work.unenforced

    @property
    def unread(self) -> tuple[str, ...]:
        """Fields that the model's template never reads, and tools that no model can be given."""
        return (*(() if self._work is None else self._work.unread), *self._left_out)

    def usage(self) -> Usage:
        """Of all turns so far."""
        running = self._work if self._is_running else None
        usages = [*self._spent, *([] if running is None else [running.usage()])]
        return usage_of_all(usages)

    async def next_events(self, timeout_s: float | None) -> list[ResponseEvent] | None:
        """What has happened since the last call.

        A call of a tool that was told to be running begins with the next call of this.

        Args:
            timeout_s: An empty list comes when nothing happened for so long; None waits.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The response failed.
        """
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        found = await self._driven(self._next, timeout_s)
        return [] if found is None else found[0]

    # What happens in order.

    async def _driven(
        self, step: Callable[[], Awaitable[ResultT]], timeout_s: float | None
    ) -> ResultT | None:
        """Do a step, or go on waiting for the one under way; None when it takes longer."""
        if self._outcome in ("aborted", "failed"):
            raise self._error or ClientDisconnectedError("The client disconnected.")
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_task(_done(step))
        pending = self._pending
        try:
            await asyncio.wait((pending,), timeout=timeout_s)
        except asyncio.CancelledError:
            pending.cancel()
            raise
        if not pending.done():
            return None
        self._pending = None
        if pending.cancelled():
            raise self._error or ClientDisconnectedError("The client disconnected.")
        result: ResultT = pending.result()
        return result

    async def _next(self) -> tuple[list[ResponseEvent] | None]:
        assert self._flow is not None, "it was started"
        try:
            events = await anext(self._flow, None)
        except GatewayError:
            self._outcome = self._outcome or "failed"
            raise
        if events is None:
            self._outcome = self._outcome or "finished"
        else:
            self._made.add(events)
        return (events,)

    async def _start(self) -> None:
        lists = self._wanted.lists_json
        known: dict[str, Any] = await off_loop(len(lists), lambda: loads(lists))
        for item in self._earlier.items:
            if item["type"] == "mcp_list_tools":
                known[item["server_label"]] = known_list(item)
        self._progress.lists, self._ready = await self._tools.list_tools(self._wanted, known)
        self._made.add(self._ready)
        approved = await self._parse()
        if not approved and not self._earlier.interrupted:
            await self._begin()

    async def _events(self) -> AsyncIterator[list[ResponseEvent]]:
        for call_id in self._earlier.interrupted:
            yield [HostedCallEnded(call_id, error=interrupted_call())]
        for call in self._body.hosted.approved:
            async for events in self._approved(call):
                yield events
        labels = [named.label for _, named in self._wanted.servers]
        while True:
            if not self._is_running:
                await self._parse()
                await self._begin()
            if self._progress.compacts:
                async for events in self._compacted():
                    yield events
                continue
            calls: dict[int, MadeCall] = {}
            finished: ChoiceFinished | None = None
            must_end = False
            work = self._work
            assert work is not None, "a turn was begun"
            while (found := await work.next_events(None)) is not None:
                told: list[ResponseEvent] = []
                for one in found:
                    if isinstance(one, ChoiceFinished):
                        finished = one
                        continue
                    event = meant_event(one, self._body.names, self.tools, labels)
                    told.append(event)
                    if isinstance(event, ToolCallStarted):
                        tool = self.tools.get(event.name)
                        if tool is None or tool.needs_approval:
                            must_end = True  # it is the client's turn
                        else:
                            calls[event.index] = MadeCall(event.id, tool)
                    elif isinstance(event, ToolCallArguments) and event.index in calls:
                        calls[event.index].pieces.append(event.text)
                if told:
                    yield told
            assert finished is not None, "every choice ends"
            self._close_turn()
            self._compactor.answered()
            if not calls or finished.finish_reason == "length":
                yield [finished]
                return
            yield [TurnOver()]
            for made in calls.values():
                async for events in self._called(made.id, made.tool, "".join(made.pieces)):
                    yield events
            if must_end:
                yield [finished]
                return
            limit = self._wanted.max_output_tokens
            if limit is not None and self._progress.num_output_tokens >= limit:
                yield [finished.as_length()]
                return

    async def _compacted(self) -> AsyncIterator[list[ResponseEvent]]:
        """The turn that sums up what is before the last message; a blank summary isn't told."""
        assert self._work is not None, "a turn was begun"
        pieces: list[str] = []
        async for piece in self._compactor.summary(self._work):
            if not pieces:
                yield [CompactionBegun()]
            pieces.append(piece)
        self._close_turn()
        self._progress.compacts = False
        if pieces:
            yield [CompactionEnded("".join(pieces).rstrip(), self._body.hosted.carried_json)]
        else:
            await self._turns.note_blank_summary()

    async def _approved(self, call: ApprovedCall) -> AsyncIterator[list[ResponseEvent]]:
        """A call that somebody has approved."""
        call_id = f"approved {call.request_id}"
        yield [
            ApprovedCallBegun(call_id, call.label, call.name, call.arguments, call.request_id),
            TurnOver(),
        ]
        if not call.is_offered:
            yield [HostedCallEnded(call_id, error=not_offered(call))]
            return
        tool = HostedTool(call.label, call.name, call.schema_json, needs_approval=False)
        async for events in self._called(call_id, tool, call.arguments):
            yield events

    async def _called(
        self, call_id: str, tool: HostedTool, arguments: str
    ) -> AsyncIterator[list[ResponseEvent]]:
        """One call; whatever goes wrong with it is its result."""
        if self._num_calls >= self._max_calls:
            yield [HostedCallEnded(call_id, error=too_many_calls(self._max_calls))]
            return
        self._num_calls += 1  # wrong arguments are bounded, too: each costs a turn of the model
        given = arguments_object(arguments)
        if given is None or not tool.is_listed:
            yield [HostedCallEnded(call_id, error=wrong_call(tool))]
            return
        self.keeps_failure = True
        yield [HostedCallRunning(call_id)]
        try:
            result = await self._tools.call(tool, given)
        except ClientDisconnectedError:
            raise
        except GatewayError as error:
            code = ERROR_TABLE[error.code].status
            result = {"error": {"type": "http_error", "code": code, "message": error.message}}
        yield [HostedCallEnded(call_id, result.get("output"), result.get("error"))]

    async def _parse(self) -> tuple[ApprovedCall, ...]:
        """Parse the request again, with all that it has come to; calls that are to be made first.

        Raises:
            GatewayError: It is wrong.
        """
        progress = self._progress
        progress.made = self._made.items
        progress.may_call = self._num_calls < self._max_calls
        frame = self._context.frame(self._max_item_bytes, progress.as_json())
        self._asked = await self._reparse(frame)
        self._body = body_of(self._asked)
        self.tools.update(self._body.hosted.tools)
        return self._body.hosted.approved

    async def _begin(self) -> None:
        """Begin a turn, or the one that makes its prompt shorter; the request is parsed.

        Raises:
            GatewayError: It can't be.
        """
        job = self._body.job
        if await self._compactor.is_due(self._body.hosted, job, self._turns.model_of(job)):
            self._progress.compacts = True
            await self._parse()
        await self._begin_turn()

    async def _begin_turn(self) -> None:
        """Begin a turn of a model, without the oldest items where that is allowed and needed.

        Raises:
            GatewayError: It can't be.
        """
        while True:
            number, models = self._progress.num_turns, self._turns.models
            job = seeded(self._body.job, self._seed, number)
            request, work = self._turns.begin(job, number)
            if self._request is not None:
                self._request.release()
            self._request, self._work, self._is_running = request, work, True
            try:
                await request.start()
            except GatewayError as failure:
                error = models.told(failure)
                num_left_out, name = self._asked.num_left_out, refused_tool(error, job)
                is_shorter = not self._progress.compacts and name not in self.tools
                if self._progress.compacts:
                    self._compactor.give_up(error)
                    self._progress.compacts = False
                elif name is not None and name in self.tools:
                    self._left_out.append(self._progress.leave_out(self.tools.pop(name)))
                elif models.take(error, work.model):
                    is_shorter = False
                else:
                    self._max_item_bytes = shorter_context(self._asked, error)
                await self._turns.forget(request)
                await self._parse()
                if is_shorter and self._asked.num_left_out <= num_left_out:
                    raise error from None
            else:
                models.begun()
                if self._limits is None:
                    self._limits = request.lease.limits, request.lease.warnings
                return

    def _close_turn(self) -> None:
        request, work = self._request, self._work
        assert request is not None, "a turn was begun"
        assert work is not None, "a turn was begun"
        usage = work.usage()
        if self._first_output_s is None:
            self._first_output_s = request.first_output_s
        self._progress.num_turns += 1
        if not self._progress.compacts:  # a summary is no part of the answer
            self._progress.num_answers += 1
            self._progress.num_output_tokens += usage.completion_tokens
        self._spent.append(usage)
        self._is_running = False


async def _done(step: Callable[[], Awaitable[ResultT]]) -> ResultT:
    # It makes the step itself: a task that is cancelled before it runs leaves nothing unawaited.
    return await step()
