"""Makes the responses that outlive their requests: taken from the store, ended once."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

import orjson

from gateway.errors import DeniedError, GatewayError, ShuttingDownError, WeightsReplacedError
from gateway.housekeeping import logs_failure
from gateway.http.background.background_task import BackgroundTask, decoded, piece_of, told_events
from gateway.http.background.background_trace import TracedTask, traced
from gateway.http.openresponses.conversation import EMPTY
from gateway.http.openresponses.convert import AskedResponse
from gateway.http.openresponses.events import HostedCallRunning
from gateway.http.openresponses.hosted_items import Earlier, earlier_turns, restored_items
from gateway.http.openresponses.render import AlreadyTold, ResponseEvents, ToldEvent
from gateway.http.openresponses.stored_items import base_of
from gateway.http.response_turns.hosted_turns import HostedTurns
from gateway.http.response_turns.response_shape import body_of, item_maker, response_head
from gateway.http.response_turns.stored_turns import added_items, as_stored, off_loop, shortened
from gateway.http.response_turns.turn_makers import BackgroundTurns, turn_id
from gateway.json_numbers import loads
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.leases.takes import Takes
from gateway.request.lifecycle.request import Request
from gateway.storage.records import EventPiece, Job
from gateway.storage.store import Store
from gateway.telemetry.request_trace import RequestTraces
from gateway.tools.tool_servers import ToolServers
from protocol.errors import DecodeError, ErrorCode

BEAT_S: Final = 3.0
STOP_S: Final = 3.0
"""What the store gets to take back what is under way; another gateway finds it later otherwise."""
_END_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0)
MAX_TAKES: Final = 5
"""A response whose gateways died so often is given up: it may be what they die of."""
PATIENCE_S: Final = 3600.0
"""How long a response waits for a server that is full or away, and for its caller's limits."""
FLUSH_S: Final = 0.2
_FLUSH_EVENTS: Final = 256
_RETRY_S: Final = 2.0
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
_logger = logging.getLogger("penstock.gateway.background")


Reparse = Callable[[bytes, bytes], Awaitable[AskedResponse]]


class BackgroundResponses:
    """The background responses that one gateway makes at a time.

    Args:
        store: Where they are queued.
        requests: Makes their requests.
        reparse: Parses a frame again, for a caller.
        servers: Whose tools they may use.
        max_tool_calls: Of one response.
        max_running: At a time.
        clock: Monotonic seconds.
        wall_clock: Unix seconds.
        traces: Begins those of responses; None for none.
    """

    def __init__(
        self,
        store: Store,
        requests: RequestFactory,
        reparse: Reparse,
        servers: ToolServers,
        max_tool_calls: int,
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        traces: RequestTraces | None = None,
    ) -> None:
        self.traces = traces
        self.servers = servers
        self.max_tool_calls = max_tool_calls
        self.store = store
        self.requests = requests
        self.reparse = reparse
        self.wall_clock = wall_clock
        self._max_running = max_running
        self._clock = clock
        self._beaten_at: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._is_asked_again = False
        self._is_stopped = False
        self._takes: dict[str, _Take] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: dict[str, asyncio.Event] = {}

    def look(self) -> "asyncio.Task[None] | None":
        """See what there is to do; called now and then, and when something was queued.

        Returns:
            The look under way, which fails while the store is away; None once it is stopped.
        """
        self._is_asked_again = True
        if not self._is_stopped and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(_log_failed_look)
        return None if self._is_stopped else self._looking

    def drop(self, response_id: str) -> None:
        """A response was cancelled or deleted: who makes it here stops at once."""
        take = self._takes.get(response_id)
        if take is not None:
            take.stop(None)
        self.tell(response_id)

    def tell(self, response_id: str) -> None:
        """There are more events of a response, or its end."""
        changed = self._changed.pop(response_id, None)
        if changed is not None:
            changed.set()

    async def wait(self, response_id: str, timeout_s: float) -> None:
        """Until there may be more of a response, for so long at most."""
        changed = self._changed.setdefault(response_id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            if self._changed.get(response_id) is changed:
                del self._changed[response_id]

    async def stop(self) -> None:
        """Take nothing more, and hand back what is under way."""
        self._is_stopped = True
        for take in list(self._takes.values()):
            take.stop(ShuttingDownError())
        running = {*self._tasks, *([] if self._looking is None else [self._looking])}
        if running and (await asyncio.wait(running, timeout=STOP_S))[1]:
            _logger.error("background responses end unwritten: the store has not answered")

    async def _look(self) -> None:
        await self._beat()
        while self._is_asked_again and not self._is_stopped:
            self._is_asked_again = False
            while len(self._takes) < self._max_running and not self._is_stopped:
                job = await self.store.jobs.claim()
                if job is None:
                    break
                self._begin(job)

    async def _beat(self) -> None:
        now = self._clock()
        if self._beaten_at is not None and now - self._beaten_at < BEAT_S:
            return
        known = set(self._takes)
        ours = await self.store.jobs.beat()
        self._beaten_at = now
        for response_id in known - ours:
            self.drop(response_id)
        for response_id in ours - set(self._takes):
            # The store was away when its take ended.
            await self.store.jobs.release(response_id, _RETRY_S)

    def _begin(self, job: Job) -> None:
        take = _Take(self, job)
        self._takes[job.response_id] = take
        task = asyncio.get_running_loop().create_task(self._run(take, job.response_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(logs_failure(f"background response {job.response_id}"))

    async def _run(self, take: "_Take", response_id: str) -> None:
        try:
            await take.run()
        except GatewayError as error:
            _logger.warning("background response %s: %s", response_id, error.message)
        except Exception:
            _logger.exception("background response %s could not be made", response_id)
            await take.give_up()
        finally:
            del self._takes[response_id]
            self.tell(response_id)
            self.look()


class _Take:
    """One attempt at a background response.

    It is long because each way in which one can go on, be put off or end is a method.

    Args:
        owner: Whose it is.
        job: Taken.
    """

    def __init__(self, owner: BackgroundResponses, job: Job) -> None:
        self._owner = owner
        self._job = job
        self._jobs = owner.store.jobs
        self._request: Request | None = None
        self._turns: HostedTurns | None = None
        self._leases = job.leases
        self._stopped: tuple[GatewayError | None] | None = None
        self._unwritten: list[ToldEvent] = []
        self._written_at = 0.0
        self._has_told_running = False
        self._is_lost = False
        self._has_told_output = False
        self._number = job.num_events

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
        with traced(task, self._job.response_id, self._owner.traces) as found:
            await self._respond(found)

    async def _respond(self, traced_task: TracedTask) -> None:
        task, asked = traced_task.task, traced_task.task.asked
        before = await self._events_before()
        is_hosted = bool(body_of(asked).hosted.servers)
        earlier, num_over = earlier_turns(before) if is_hosted else (Earlier(), 0)
        told = AlreadyTold(before[num_over:], has_begun=AlreadyTold(before).has_begun)
        self._has_told_running = told.has_begun
        self._has_told_output = told.has_output
        while True:
            if is_hosted:
                self._turns = self._hosted_turns(asked, task, earlier)
            events = self._events(asked, task.created, told, earlier)
            try:
                await self._make(asked, task, events)
            except GatewayError as error:
                if self._is_lost:
                    return
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
            await self._finish(asked, task.created, events)
            return

    async def give_up(self) -> None:
        """End the job as failed, whatever was wrong with it."""
        response = await self._owner.store.responses.find(self._job.tenant, self._job.response_id)
        failed = {
            **await off_loop(len(response.body), lambda: loads(response.body)),
            "status": "failed",
            "error": {
                "code": "server_error",
                "message": "The response could not be made; please ask for it again.",
            },
        }
        event = {"type": "response.failed", "response": failed, "sequence_number": self._number}
        piece = EventPiece(self._number, self._number, orjson.dumps([event]))
        ended = replace(response, status="failed", body=orjson.dumps(failed))
        await self._jobs.finish(ended, piece)

    async def _make(
        self, asked: AskedResponse, task: BackgroundTask, events: ResponseEvents
    ) -> None:
        """Generate, and write down events as they come.

        Raises:
            GatewayError: It failed, or the store is away.
        """
        if self._job.takes > MAX_TAKES:
            raise GatewayError(f"{self._job.takes - 1} servers ended while they made it.")
        if self._stopped is not None:
            raise self._stopped[0] or GatewayError("It was cancelled.")
        request: Request | HostedTurns
        work: GenerationWork | HostedTurns
        if self._turns is None:
            request, work = self._generation(asked, body_of(asked).job, task, 0)
        else:
            request = work = self._turns
        try:
            await request.start()
            await self._write(events, asked, task.created)
            while (found := await work.next_events(FLUSH_S)) is not None:
                rendered = events.render(found)
                self._has_told_output |= bool(rendered)
                self._unwritten += rendered
                if any(isinstance(event, HostedCallRunning) for event in found):
                    await self._note_call(events, asked, task.created)
                else:
                    await self._write(events, asked, task.created)
            self._unwritten += events.finish(work.usage())
        except GatewayError as error:
            request.end("failed", error)
            raise
        finally:
            request.end("aborted")

    def _generation(
        self, asked: AskedResponse, job: GenerationJob, task: BackgroundTask, number: int
    ) -> tuple[Request, GenerationWork]:
        """The request of a turn; a response without tools of this server has one."""
        request, work = self._owner.requests.generation(
            replace(job, take=secrets.token_hex(4)),
            task.caller(),
            turn_id(base_of(self._job.response_id), number),
            Takes(self._leases, self._note_lease, partial(self._is_put_off, asked)),
        )
        self._request = request
        return request, work

    def _hosted_turns(
        self, asked: AskedResponse, task: BackgroundTask, earlier: Earlier
    ) -> HostedTurns:
        owner, context = self._owner, task.context
        assert context is not None, "it is parsed again for every turn"
        name = task.key_digest or task.address.encode()
        return HostedTurns(
            asked,
            context,
            lambda frame: owner.reparse(frame, name),
            response_id=self._job.response_id,
            servers=owner.servers,
            requests=owner.requests,
            caller=task.caller(),
            turns=BackgroundTurns(
                lambda job, number: self._generation(asked, job, task, number), self._forget_lease
            ),
            max_calls=owner.max_tool_calls,
            wall_clock=owner.wall_clock,
            outlasts_drain=False,
            earlier=earlier,
        )

    async def _note_call(self, events: ResponseEvents, asked: AskedResponse, created: int) -> None:
        """A tool is about to run: whoever takes the response up again must not run it again."""
        self._written_at = 0.0
        await self._write(events, asked, created)
        # The turn is over, and its lease is its own request's business.
        self._leases = ()
        if not await self._jobs.note_leases(self._job.response_id, ()):
            self._lose()

    def _events(
        self, asked: AskedResponse, created: int, told: AlreadyTold, earlier: Earlier
    ) -> ResponseEvents:
        body = body_of(asked)
        number = self._unwritten[-1].number + 1 if self._unwritten else self._number
        head = response_head(
            self._job.response_id, created, body, self._owner.wall_clock, number, told
        )
        tools = EMPTY if self._turns is None else self._turns.tools
        maker = item_maker(base_of(self._job.response_id), body, tools, len(earlier.items))
        events = ResponseEvents(head, maker)
        events.restore(restored_items(earlier, maker))
        return events

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
        if not await self._jobs.note_events(self._job.response_id, piece, running):
            self._lose()
        self._unwritten = []
        self._number = piece.last + 1
        self._written_at = now
        self._owner.tell(self._job.response_id)

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
        if isinstance(error, WeightsReplacedError) and asked.is_streaming:
            # Another text would come behind what its client has read already.
            return not self._has_told_output
        return isinstance(error, ShuttingDownError) or self._age_s() < PATIENCE_S

    def _age_s(self) -> float:
        return self._owner.wall_clock() - self._job.created_ms / 1000

    async def _put_off(self, error: GatewayError) -> None:
        """Put the job back with all that was told of it."""
        request, leases = self._request, self._leases
        if self._turns is not None and not self._turns.is_in_turn:
            request = None  # that of the last turn has been settled
        has_begun = request is not None and request.work.has_begun
        if self._unwritten:
            await self._jobs.note_events(self._job.response_id, piece_of(self._unwritten))
        if request is not None and has_begun and request.lease.lease_id:
            leases = (*leases, request.lease.lease_id)
        wait_s = error.retry_after_s or (0.0 if isinstance(error, ShuttingDownError) else _RETRY_S)
        await self._jobs.release(self._job.response_id, wait_s, leases)
        if request is not None and not has_begun:
            request.take_back()

    async def _shortened(
        self, asked: AskedResponse, task: BackgroundTask, error: GatewayError
    ) -> AskedResponse:
        context, caller = task.context, task.key_digest or task.address.encode()
        assert context is not None, "it may be shortened"
        return await shortened(
            asked, context, error, lambda frame: self._owner.reparse(frame, caller)
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
            pieces, _ = await self._jobs.events_after(
                self._job.tenant, self._job.response_id, number
            )
            if not pieces:
                break
            for piece in pieces:
                found += await told_events(piece)
            number = pieces[-1].last
        return found


def _log_failed_look(look: "asyncio.Task[None]") -> None:
    """A store that is away is told in a line each second; anything else is a bug of ours."""
    error = None if look.cancelled() else look.exception()
    if isinstance(error, GatewayError):
        _logger.warning("background responses wait: %s", error.message)
    elif error is not None:
        _logger.error("looking for background responses failed", exc_info=error)


def _is_too_long(asked: AskedResponse, error: GatewayError) -> bool:
    return asked.truncates and error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
