"""One attempt at a background response: it goes on, is put off, or ends it."""

import asyncio
import secrets
from dataclasses import replace
from functools import partial
from typing import Final

from gateway.errors import AnotherTextError, DeniedError, GatewayError, ShuttingDownError
from gateway.http.background.background_task import (
    BackgroundTask,
    cancelled,
    decoded,
    encoded,
    given_up,
    piece_of,
    told_events,
)
from gateway.http.background.background_trace import TracedTask, traced
from gateway.http.background.take_parts import TakeParts
from gateway.http.openresponses.already_told import AlreadyTold
from gateway.http.openresponses.conversation import EMPTY
from gateway.http.openresponses.convert import AskedResponse
from gateway.http.openresponses.events import CompactionEnded, HostedCallRunning
from gateway.http.openresponses.hosted_items import Earlier, earlier_turns, restored_items
from gateway.http.openresponses.render import ResponseEvents, ToldEvent
from gateway.http.openresponses.stored_items import base_of
from gateway.http.response_turns.hosted_turns import HostedTurns
from gateway.http.response_turns.response_shape import body_of, item_maker, response_head
from gateway.http.response_turns.stored_turns import added_items, as_stored, shortened
from gateway.http.response_turns.turn_makers import BackgroundTurns, LongerModels, turn_id
from gateway.request.jobs.job import COMPACT_ENDPOINT, GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.leases.takes import Takes
from gateway.request.lifecycle.request import Request
from gateway.storage.records import Job
from protocol.errors import DecodeError, ErrorCode
from protocol.wire.messages import Usage

_END_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0)
MAX_TAKES: Final = 5
"""A response whose gateways died so often is given up: it may be what they die of."""
PATIENCE_S: Final = 3600.0
"""How long a response waits for a server that is full or away, and for its caller's limits."""
FLUSH_S: Final = 0.2
_FLUSH_EVENTS: Final = 256
RETRY_S: Final = 2.0
_PASSING: Final = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.RATE_LIMIT_EXCEEDED,
    }
)
_STORE_PASSING: Final = frozenset({ErrorCode.OVERLOADED, ErrorCode.WORKER_UNAVAILABLE})


class Take:
    """One attempt at a background response.

    It is long because each way in which one can go on, be put off or end is a method.

    Args:
        parts: What it uses.
        job: Taken.
    """

    _models: LongerModels

    def __init__(self, parts: TakeParts, job: Job) -> None:
        self._parts = parts
        self._job = job
        self._jobs = parts.store.jobs
        self._request: Request | None = None
        self._turns: HostedTurns | None = None
        self._leases = job.leases
        self._stopped: tuple[GatewayError | None] | None = None
        self._unwritten: list[ToldEvent] = []
        self._written_at = 0.0
        self._has_told_running = False
        self._is_lost = False
        self._is_taken_back = False
        self._number = job.num_events
        self._has_told_output = False
        self._told_model = job.model
        self._kept_model: str | None = None

    def stop(self, error: GatewayError | None) -> None:
        """End it: with an error that passes it is put back, with None nobody wants it any more."""
        self._stopped = (error,)
        self._is_lost |= error is None
        running = self._request if self._turns is None else self._turns
        if running is not None:
            running.end("aborted" if error is None else "failed", error)

    async def run(self) -> None:
        """Make the response, and end its job unless it is put back.

        Raises:
            GatewayError: The store is away.
        """
        try:
            task = decoded(self._job.request)
        except DecodeError:
            await self.give_up()
            return
        with traced(task, self._job.response_id, self._parts.traces) as found:
            await self._respond(found)

    async def _respond(self, traced_task: TracedTask) -> None:
        task, asked = traced_task.task, traced_task.task.asked
        self._models = LongerModels(self._parts.requests, asked.model)
        before = await self._events_before()
        is_hosted = body_of(asked).hosted.takes_turns
        earlier, num_over = earlier_turns(before) if is_hosted else (Earlier(), 0)
        may_begin_anew = not earlier.num_turns and not earlier.num_calls
        if task.has_blank_summary:
            earlier = replace(earlier, num_turns=earlier.num_turns + 1, has_blank_summary=True)
        told = AlreadyTold(before[num_over:], has_begun=AlreadyTold(before).has_begun)
        self._has_told_running = told.has_begun
        self._has_told_output = told.has_output
        if told.has_output and self._job.is_read:
            # Another model that stands in would have another text.
            self._kept_model = self._job.model or None
        while True:
            if is_hosted:
                self._turns = self._hosted_turns(asked, task, earlier)
            events = self._events(asked, task.created, told, earlier)
            try:
                await self._make(asked, task, events, may_begin_anew=may_begin_anew)
            except GatewayError as error:
                if self._is_lost:
                    await self._tell_spent()
                    return
                if isinstance(error, AnotherTextError) and not self._is_taken_back:
                    # The output that it ends with is not the one that was told.
                    events = self._events(asked, task.created, told, earlier)
                error = self._models.told(error)
                if not is_hosted and self._models.take(error, self._tried):
                    await self._forget_lease()
                    continue
                if _is_too_long(asked, error) and not is_hosted:
                    await self._forget_lease()
                    try:
                        asked = await self._shortened(asked, task, error)
                    except GatewayError as refusal:
                        error = refusal
                    else:
                        continue
                elif not _is_too_long(asked, error) and self._is_put_off(asked, error):
                    traced_task.fail(error)
                    await self._put_off(error)
                    return
                traced_task.fail(error)
                self._unwritten += events.fail(error)
            if self._is_lost:  # it was stopped, and has ended without an error
                await self._tell_spent()
            else:
                await self._finish(asked, task.created, events)
            return

    async def give_up(self) -> None:
        """End the job as failed, whatever was wrong with it."""
        response = await self._parts.store.responses.find(self._job.tenant, self._job.response_id)
        await self._jobs.finish(*await given_up(response, self._number))

    async def _tell_spent(self) -> None:
        """Say what was spent on a response that was cancelled; one that is gone says nothing."""
        if self._request is not None:
            await self._request.until_known()
        spent = self._spent()
        if spent.prompt_tokens:
            told = partial(cancelled, spent=spent)
            await self._jobs.note_spent(self._job.tenant, self._job.response_id, told)

    async def _make(
        self,
        asked: AskedResponse,
        task: BackgroundTask,
        events: ResponseEvents,
        *,
        may_begin_anew: bool,
    ) -> None:
        """Generate, and write down events as they come.

        Args:
            asked: For.
            task: As the store has it.
            events: Of this attempt.
            may_begin_anew: Whether what was told may be taken back, unless somebody has read it.

        Raises:
            GatewayError: It failed, or the store is away.
        """
        if self._job.takes > MAX_TAKES:
            raise GatewayError(f"{self._job.takes - 1} servers ended while they made it.")
        if self._stopped is not None:
            raise self._stopped[0] or GatewayError("It was cancelled.")
        request: Request | HostedTurns
        work: GenerationWork | HostedTurns
        is_made_again = False
        if self._turns is None:
            request, work = self._generation(asked, body_of(asked).job, task, 0)
        else:
            request = work = self._turns
        try:
            await request.start()
            self._models.begun()
            events.answered_by(request.model)
            await self._write(events, asked, task.created)
            while (found := await work.next_events(FLUSH_S)) is not None:
                rendered = events.render(found)
                self._has_told_output |= bool(rendered)
                self._unwritten += rendered
                if any(isinstance(event, HostedCallRunning | CompactionEnded) for event in found):
                    await self._note_turn(events, asked, task.created)
                else:
                    await self._write(events, asked, task.created)
            self._unwritten += events.finish(work.usage())
        except GatewayError as error:
            if isinstance(error, AnotherTextError) and may_begin_anew:
                self._is_taken_back = await self._jobs.take_back_events(self._job.response_id)
            request.end("failed", error)
            goes_on = self._is_put_off(asked, error) or self._goes_longer(error)
            is_made_again = goes_on and not self._is_turn_over
            raise
        finally:
            request.end("aborted")
            if self._request is not None:
                self._request.conclude(is_made_again=is_made_again)

    def _generation(
        self, asked: AskedResponse, job: GenerationJob, task: BackgroundTask, number: int
    ) -> tuple[Request, GenerationWork]:
        """The request of a turn; a response without tools of this server has one."""
        if self._request is not None and self._request.outcome == "finished":
            # The turn before: all of it was told, and this one has a lease of its own.
            self._request.conclude()
            self._leases = ()
        request, work = self._parts.requests.generation(
            job.changed(take=secrets.token_hex(4)),
            task.caller(),
            turn_id(base_of(self._job.response_id), number),
            Takes(
                self._leases, self._note_lease, partial(self._is_turn_put_off, asked, job.endpoint)
            ),
            model=self._model_of(job),
        )
        self._request = request
        return request, work

    def _model_of(self, job: GenerationJob) -> str:
        """Who answers a turn that begins now."""
        return self._models.chosen or self._kept_model or self._parts.requests.model_of(job)

    def _hosted_turns(
        self, asked: AskedResponse, task: BackgroundTask, earlier: Earlier
    ) -> HostedTurns:
        parts, context = self._parts, task.context
        assert context is not None, "it is parsed again for every turn"
        name = task.key_digest or task.address.encode()
        return HostedTurns(
            asked,
            context,
            lambda frame: parts.reparse(frame, name),
            response_id=self._job.response_id,
            servers=parts.servers,
            requests=parts.requests,
            caller=task.caller(),
            turns=BackgroundTurns(
                self._models,
                lambda job, number: self._generation(asked, job, task, number),
                self._model_of,
                self._forget_lease,
                partial(self._note_blank, task),
            ),
            max_calls=parts.max_tool_calls,
            wall_clock=parts.wall_clock,
            outlasts_drain=False,
            earlier=earlier,
        )

    async def _note_turn(self, events: ResponseEvents, asked: AskedResponse, created: int) -> None:
        """A tool is about to run, or a compaction is over: neither is done again."""
        if self._request is not None:
            self._request.conclude()
        self._written_at = 0.0
        await self._write(events, asked, created)
        self._kept_model = None
        await self._forget_turn()

    async def _note_blank(self, task: BackgroundTask) -> None:
        """A summary came to nothing, which isn't asked for again; no event tells of it."""
        if self._request is not None:
            self._request.conclude()
        await self._forget_turn(encoded(replace(task, has_blank_summary=True)))

    async def _forget_turn(self, changed: bytes | None = None) -> None:
        """The turn is over, and its lease is its own request's business.

        Args:
            changed: What the response is made from, from now on; None for no change.
        """
        self._leases = ()
        if not await self._jobs.note_leases(self._job.response_id, (), changed):
            self._lose()

    def _events(
        self, asked: AskedResponse, created: int, told: AlreadyTold, earlier: Earlier
    ) -> ResponseEvents:
        body = body_of(asked)
        number = self._unwritten[-1].number + 1 if self._unwritten else self._number
        head = response_head(
            self._job.response_id, created, body, self._parts.wall_clock, number, told
        )
        head = replace(head, spent=self._spent)
        tools = EMPTY if self._turns is None else self._turns.tools
        maker = item_maker(base_of(self._job.response_id), body, tools, len(earlier.items))
        events = ResponseEvents(head, maker)
        events.restore(restored_items(earlier, maker))
        return events

    def _spent(self) -> Usage:
        """What this attempt has used so far."""
        running = self._request if self._turns is None else self._turns
        return Usage() if running is None else running.usage()

    async def _note_lease(self, lease_id: str) -> None:
        leases = (*self._leases, lease_id)
        if lease_id and not await self._jobs.note_leases(self._job.response_id, leases):
            self._lose()

    async def _forget_lease(self) -> None:
        """Nothing was computed on it, and another one comes."""
        await self._jobs.note_leases(self._job.response_id, self._leases)
        if self._request is not None:
            self._request.take_back()

    async def _write(self, events: ResponseEvents, asked: AskedResponse, created: int) -> None:
        """Write down what was told, not too often."""
        now = asyncio.get_running_loop().time()
        is_due = now - self._written_at >= FLUSH_S or len(self._unwritten) >= _FLUSH_EVENTS
        if not self._has_told_running:
            self._unwritten += events.render([])
        if not self._unwritten or not is_due:
            return
        running = None
        if not self._has_told_running:
            self._has_told_running = True
            running = as_stored(self._job.response_id, asked, created, events.running())
        piece = piece_of(self._unwritten)
        model = self._new_model()
        if not await self._jobs.note_events(self._job.response_id, piece, running, model):
            self._lose()
        self._unwritten = []
        self._number = piece.last + 1
        self._written_at = now
        self._parts.tell(self._job.response_id)

    def _new_model(self) -> str | None:
        """Whose output the store doesn't know yet to be told; None where it does."""
        request = self._request
        if request is None or not self._has_told_output or request.work.model == self._told_model:
            return None
        self._told_model = request.work.model
        return self._told_model

    def _lose(self) -> None:
        """It was cancelled or deleted, or another gateway has taken it."""
        self._is_lost = True
        raise GatewayError("The response is no longer this gateway's to make.")

    def _is_put_off(self, asked: AskedResponse, error: GatewayError) -> bool:
        """Whether this isn't the end of the response."""
        if _is_too_long(asked, error):
            return True
        if self._is_lost or error.code not in _PASSING:
            return False
        if isinstance(error, DeniedError) and error.retry_after_s is None:
            return False  # no wait makes room for it
        if isinstance(error, AnotherTextError):
            return self._is_taken_back
        return isinstance(error, ShuttingDownError) or self._age_s() < PATIENCE_S

    def _is_turn_put_off(self, asked: AskedResponse, endpoint: str, error: GatewayError) -> bool:
        """The same of a turn; one that sums up too much gives way to the turn that answers."""
        is_summary = endpoint == COMPACT_ENDPOINT
        is_too_long = is_summary and error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        return is_too_long or self._is_put_off(asked, error) or self._goes_longer(error)

    def _goes_longer(self, error: GatewayError) -> bool:
        """Whether a model with a longer context makes the turn again."""
        return self._models.after(error, self._tried) is not None

    @property
    def _tried(self) -> str:
        """The model of the last turn."""
        return "" if self._request is None else self._request.model

    @property
    def _is_turn_over(self) -> bool:
        """Whether the last turn stays, whatever becomes of what follows it."""
        is_between = self._turns is not None and not self._turns.is_in_turn
        return is_between and not self._is_taken_back

    def _age_s(self) -> float:
        return self._parts.wall_clock() - self._job.created_ms / 1000

    async def _put_off(self, error: GatewayError) -> None:
        """Put the job back with all that was told of it."""
        request, leases = self._request, self._leases
        if self._is_turn_over:
            request = None  # it has been settled
        has_begun = request is not None and request.work.has_begun
        if self._unwritten:
            await self._jobs.note_events(
                self._job.response_id, piece_of(self._unwritten), model=self._new_model()
            )
        if request is not None and has_begun and request.lease.lease_id:
            leases = (*leases, request.lease.lease_id)
        is_at_once = isinstance(error, ShuttingDownError | AnotherTextError)
        wait_s = error.retry_after_s or (0.0 if is_at_once else RETRY_S)
        await self._jobs.release(self._job.response_id, wait_s, leases)
        if request is not None and not has_begun:
            request.take_back()

    async def _shortened(
        self, asked: AskedResponse, task: BackgroundTask, error: GatewayError
    ) -> AskedResponse:
        context, caller = task.context, task.key_digest or task.address.encode()
        assert context is not None, "it may be shortened"
        return await shortened(
            asked, context, error, lambda frame: self._parts.reparse(frame, caller)
        )

    async def _finish(self, asked: AskedResponse, created: int, events: ResponseEvents) -> None:
        try:
            await self._end_patiently(asked, created, events)
        except GatewayError as error:
            if error.code in _STORE_PASSING:
                raise  # it is taken up again
            # Its conversation can't take it; whoever asks must know.
            self._unwritten = [
                *(one for one in self._unwritten if one.number < events.first_of_end),
                *events.fail(error),
            ]
            await self._end(asked, created, events, with_items=False)

    async def _end_patiently(
        self, asked: AskedResponse, created: int, events: ResponseEvents
    ) -> None:
        """The end of what is made already, again while only the store is in trouble."""
        for pause_s in _END_PAUSES_S:
            try:
                await self._end(asked, created, events, with_items=True)
            except GatewayError as error:
                if error.code not in _STORE_PASSING or self._stopped is not None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return
        await self._end(asked, created, events, with_items=True)

    async def _end(
        self,
        asked: AskedResponse,
        created: int,
        events: ResponseEvents,
        *,
        with_items: bool,
    ) -> None:
        final = events.final
        assert final is not None, "it has ended"
        response = as_stored(self._job.response_id, asked, created, final)
        is_good = with_items and final.status != "failed"
        items = await added_items(response) if is_good else []
        piece = piece_of(self._unwritten) if self._unwritten else None
        await self._jobs.finish(response, piece, items)

    async def _events_before(self) -> list[dict[str, object]]:
        """What earlier takes told."""
        found: list[dict[str, object]] = []
        number = -1
        while number < self._job.num_events - 1:
            pieces = await self._jobs.told(self._job.response_id, number)
            if not pieces:
                break
            for piece in pieces:
                found += await told_events(piece)
            number = pieces[-1].last
        return found


def _is_too_long(asked: AskedResponse, error: GatewayError) -> bool:
    return asked.truncates and error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
