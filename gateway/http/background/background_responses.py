"""Makes the responses that outlive their requests: taken from the store, ended once."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.errors import GatewayError, ShuttingDownError
from gateway.housekeeping import logs_failure
from gateway.http.background.background_take import RETRY_S, Take
from gateway.http.background.take_parts import Reparse, TakeParts
from gateway.request.factory import RequestFactory
from gateway.storage.records import Job
from gateway.storage.store import Store
from gateway.telemetry.request_trace import RequestTraces
from gateway.tools.tool_servers import ToolServers

BEAT_S: Final = 3.0
STOP_S: Final = 3.0
"""What the store gets to take back what is under way; another gateway finds it later otherwise."""
_logger = logging.getLogger("penstock.gateway.background")


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
        self.store = store
        self._parts = TakeParts(
            store=store,
            requests=requests,
            reparse=reparse,
            servers=servers,
            max_tool_calls=max_tool_calls,
            wall_clock=wall_clock,
            traces=traces,
            tell=self.tell,
        )
        self._max_running = max_running
        self._clock = clock
        self._beaten_at: float | None = None
        self._beating: asyncio.Task[None] | None = None
        # A job that is being claimed is in the store already, and not among the takes yet.
        self._claiming = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._is_asked_again = False
        self._is_stopped = False
        self._takes: dict[str, Take] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: dict[str, asyncio.Event] = {}

    def look(self) -> "asyncio.Task[None] | None":
        """See what there is to do; called now and then, and when something was queued.

        The store also hears that this gateway lives, until the last call: what it holds there, as
        conversations and the claims of requests, may be in use longer than a response is made.

        Returns:
            The look under way, which fails while the store is away; None once it is stopped.
        """
        self._is_asked_again = True
        self._beat_if_due()
        if not self._is_stopped and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(_log_failed_look)
        return None if self._is_stopped else self._looking

    def drop(self, response_id: str) -> None:
        """A response was cancelled or deleted: who makes it here stops at once."""
        take = self._takes.get(response_id)
        if take is None:
            self.tell(response_id)
        else:
            take.stop(None)  # what it came to is told when it has ended

    async def until_left(self, response_id: str) -> bool:
        """Wait a little for the end of what was dropped; whether it was being made here."""
        is_made = response_id in self._takes
        if is_made:
            await self.wait(response_id, STOP_S)
        return is_made

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
        running = {*self._tasks, *filter(None, (self._looking, self._beating))}
        if running and (await asyncio.wait(running, timeout=STOP_S))[1]:
            _logger.error("background responses end unwritten: the store has not answered")

    async def _look(self) -> None:
        if (beating := self._beat_if_due()) is not None:
            await asyncio.shield(beating)
        while self._is_asked_again and not self._is_stopped:
            self._is_asked_again = False
            while len(self._takes) < self._max_running and not self._is_stopped:
                async with self._claiming:
                    job = await self.store.jobs.claim()
                    if job is None:
                        break
                    self._begin(job)

    def _beat_if_due(self) -> "asyncio.Task[None] | None":
        """The beat under way, if one is due."""
        now = self._clock()
        if self._beaten_at is not None and now - self._beaten_at < BEAT_S:
            return None
        if self._beating is None or self._beating.done():
            self._beating = asyncio.get_running_loop().create_task(self._beat(now))
            self._beating.add_done_callback(_note_failure)
        return self._beating

    async def _beat(self, now: float) -> None:
        async with self._claiming:
            known = set(self._takes)
            ours = await self.store.jobs.beat()
            left = ours - set(self._takes)
        self._beaten_at = now
        for response_id in known - ours:
            self.drop(response_id)
        for response_id in left:
            # The store was away when its take ended.
            await self.store.jobs.release(response_id, RETRY_S)

    def _begin(self, job: Job) -> None:
        take = Take(self._parts, job)
        self._takes[job.response_id] = take
        task = asyncio.get_running_loop().create_task(self._run(take, job.response_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(logs_failure(f"background response {job.response_id}"))

    async def _run(self, take: Take, response_id: str) -> None:
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


def _note_failure(beat: "asyncio.Task[None]") -> None:
    """A look waits for each beat, unless it is stopped, and tells what it failed with."""
    if not beat.cancelled():
        beat.exception()


def _log_failed_look(look: "asyncio.Task[None]") -> None:
    """A store that is away is told in a line each second; anything else is a bug of ours."""
    error = None if look.cancelled() else look.exception()
    if isinstance(error, GatewayError):
        _logger.warning("background responses wait: %s", error.message)
    elif error is not None:
        _logger.error("looking for background responses failed", exc_info=error)
