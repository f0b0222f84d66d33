"""The one life of a request, whatever it asks for: identified, reserved, prepared, run, settled.

```
identified -> reserved -> prepared -> running -> ending -> settled
     |            |           |          |         ^
     +------------+-----------+----------+---------+   any failure, a client that leaves
```

Being admitted, to a slot of an engine, is a part of preparing that only work of engines has (ADR
0030). A `Request` alone owns outcome, deadline, lease and session; its `Work` owns what is at
workers.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import IntEnum
from functools import partial

from gateway import bridge
from gateway.bridge import Outcome
from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    GatewayError,
    ModelNotFoundError,
)
from gateway.ledger.outbox import Outbox
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import Identity, IdentityTable
from gateway.request.leases.lease import RequestLease
from gateway.request.leases.takes import Takes
from gateway.request.leases.work_bound import Admitted
from gateway.request.lifecycle.background import Background
from gateway.request.lifecycle.sessions import SessionTable
from gateway.request.lifecycle.work import SimpleWork, Work
from gateway.request.lifecycle.work_trace import WorkTrace
from gateway.workers.auth import AuthLink
from protocol.errors import ErrorCode
from protocol.wire.messages import Granted, LeaseReport, Scope, Usage

_logger = logging.getLogger("penstock.gateway.request")

ABORT_PATIENCE_S = 10.0
"""How long the settlement of an aborted request waits for the workers' own count."""

_OURS = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.WORKER_LOST,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.INTERNAL_ERROR,
    }
)
"""Failures that a caller is not to blame for: a request that met one before anything was computed
for it is no request in its limits and totals."""


class _Done(SimpleWork):
    """What is left of the work of a settled request."""

    endpoint = ""
    model = ""
    has_begun = True

    async def run(self) -> None:
        """It is over."""


_DONE = _Done()
_UNTOLD = nullcontext()
"""A step of a request that isn't traced."""


class State(IntEnum):
    """Where a request is in its life."""

    IDENTIFIED = 0
    RESERVED = 1
    PREPARED = 2
    RUNNING = 3
    ENDING = 4
    SETTLED = 5

    def then(self, later: "State") -> "State":
        """The later state; a life never goes back, nor stands still."""
        assert later > self, f"a request that is {self.name} doesn't become {later.name}"
        return later


class Request:
    """One piece of metered work: `start` it, and `end` it whatever happens.

    It is long because whatever can end a request comes in by a method of its own.

    `start` runs in its caller's task; an `end` that comes meanwhile, from a client that leaves, a
    drain or the deadline, cancels it, so nothing goes out after the settlement.

    Args:
        work: What is asked for.
        request_id: Made by the gateway.
        caller: Who asks.
        scope: What its key must be good for.
        auth: Decides what the caller may use.
        outbox: Keeps the settlement until it is durable.
        identities: Who callers were a moment ago.
        sessions: Every request under way.
        check_open: Raises while this gateway takes nothing new.
        too_late: Makes the error of a request whose time ran out, from its model.
        timeout_s: How long it may take.
        clock: Monotonic seconds.
        takes: Of a request that may be made several times.

    Attributes:
        trace_id: The client's `X-Request-ID`.
        traceparent: Where in a trace it belongs, for workers; empty when it isn't traced.
        state: Where it is in its life.
        outcome: How it ended; None while it runs.
        identity: Who the caller turned out to be; None before the grant.
        lease: What it may use, and where its caller stands.
        trace: What is told of it to a collector of traces; None when it isn't traced.
    """

    def __init__(
        self,
        work: Work,
        *,
        request_id: str,
        caller: Caller,
        scope: Scope,
        auth: AuthLink,
        outbox: Outbox,
        identities: IdentityTable,
        sessions: SessionTable,
        check_open: Callable[[], None],
        too_late: Callable[[str], GatewayError],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        takes: Takes | None = None,
    ) -> None:
        self.work = work
        self.request_id = request_id
        self.caller = caller
        self.trace_id = caller.trace_id
        self.state = State.IDENTIFIED
        self.outcome: Outcome | None = None
        self.identity: Identity | None = None
        self.lease = RequestLease(auth, request_id)
        self.background = Background(request_id, self.fail)
        self.trace = None if caller.trace is None else WorkTrace(caller.trace)
        self.traceparent = "" if self.trace is None else self.trace.traceparent
        self._scope = scope
        self._auth = auth
        self._outbox = outbox
        self._identities = identities
        self._sessions = sessions
        self._check_open = check_open
        self._too_late = too_late
        self._timeout_s = timeout_s
        self._clock = clock
        self._arrived_at = clock()
        self._starter: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: GatewayError | None = None
        self._is_ours = True
        self._takes = takes
        self._is_put_off = False
        self._settle: Callable[[], None] | None = None
        self._usage: Usage | None = None
        self._known: asyncio.Event | None = None
        self._is_released = False
        work.attach(self)

    keeps_failure = False
    """Nothing of a generation that failed is stored."""

    @property
    def model(self) -> str:
        """Whose work it is."""
        return self.work.model

    def step(self, name: str) -> AbstractContextManager[None]:
        """What happens within is a step of the request's trace."""
        return _UNTOLD if self.trace is None else self._told_step(self.trace, name)

    @contextmanager
    def _told_step(self, trace: WorkTrace, name: str) -> Iterator[None]:
        began_at = self._clock()
        try:
            yield
        finally:
            trace.tell_step(name, began_at, self._clock())

    def usage(self) -> Usage:
        """What was used so far; final once the request is settled."""
        return self.work.usage() if self._usage is None else self._usage

    @property
    def first_output_s(self) -> float | None:
        """Seconds from the arrival to the first output; None where there was none."""
        first_at = self.work.first_output_at
        return None if first_at is None else first_at - self._arrived_at

    @property
    def elapsed_s(self) -> float:
        """Seconds since the arrival."""
        return self._clock() - self._arrived_at

    def release(self) -> None:
        """Whoever asked has read all it wants: once it is settled, nothing of the work is kept.

        A request and its work know each other; without this only the garbage collector, which stops
        every stream while it looks, would find them.
        """
        self._is_released = True
        self._error = None  # it knows the frames that it went through, and they know the request
        if self.state is State.SETTLED:
            self.work = _DONE

    def remaining_s(self) -> float:
        """Seconds that the request has left."""
        return max(0.0, self._timeout_s - (self._clock() - self._arrived_at))

    async def start(self) -> None:
        """Everything before the first output, and before any header.

        Raises:
            GatewayError: The request ended meanwhile, or had before: a client may leave while its
                body is looked at. Whatever was reserved is given back.
        """
        if self.state >= State.ENDING:
            raise self._error or ClientDisconnectedError("The client disconnected.")
        self._starter = asyncio.current_task()
        self._sessions.add_for(self, self._timeout_s, self._on_deadline)
        try:
            await self._start()
        except asyncio.CancelledError:
            if self.outcome is None:
                self.end("aborted")  # our caller's task is cancelled, and we with it
                raise
            if self._starter is not None:
                self._starter.uncancel()
            raise self._error or ClientDisconnectedError("The client disconnected.") from None
        except GatewayError as error:
            self.end("failed", error)
            raise
        except BaseException:
            self.end("failed", GatewayError("Internal server error."))
            raise
        finally:
            self._starter = None
        if self._error is not None:
            raise self._error

    def end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        """End the request; whatever still runs is stopped, and what was used is settled.

        Idempotent: the first outcome counts. Called from every exit path of the consumer.

        Args:
            outcome: How it ended.
            error: Why, for who still reads.
        """
        if self.outcome is not None:
            return
        self.outcome, self._error = outcome, error
        self._is_ours = _is_ours(error)
        if self._takes is not None and error is not None:
            self._is_put_off = self._takes.is_put_off(error)
        self.state = self.state.then(State.ENDING)
        if self._starter is not None and self._starter is not asyncio.current_task():
            self._starter.cancel()
        self.background.close()
        try:
            self.work.abort(error)
        except Exception:  # what it used is settled anyway
            _logger.exception("request %s could not be stopped", self.request_id)
        self.on_idle()

    def fail(self, error: GatewayError) -> None:
        """End the request with an error, unless it has ended already."""
        self.end("failed", error)

    def on_client_gone(self) -> None:
        """Nobody is left to answer."""
        self.end("aborted", ClientDisconnectedError("The client disconnected."))

    def on_idle(self) -> None:
        """Settle once: when the request has its outcome and nothing of it is at a worker.

        What a worker has not reported by then is waited for, ten seconds at most.
        """
        if self.outcome is None or self.state is State.SETTLED:
            return
        if self.work.is_at_worker:
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(ABORT_PATIENCE_S, self.give_up)
            return
        self.state = self.state.then(State.SETTLED)
        if self._timer is not None:
            self._timer.cancel()
        self._sessions.discard(self)
        usage = self._usage = self.work.usage()
        if self._known is not None:
            self._known.set()
        has_begun = self.work.has_begun
        is_unused = self.outcome != "finished" and not has_begun and self._is_ours
        if not self._is_put_off:
            earlier = () if self._takes is None else self._takes.earlier
            outbox = self.caller.errand or self._outbox
            self._settle = partial(
                self.lease.settle,
                outbox,
                usage,
                self.outcome,
                is_unused=is_unused,
                has_begun=has_begun or bool(earlier),  # what was put off had begun
                earlier=earlier,
            )
            if self._takes is None or self.outcome != "finished":
                self.conclude()
        self.work.observe(self.outcome, self._clock() - self._arrived_at)
        if self.trace is not None:
            self.trace.tell(
                self.work,
                usage,
                began_at=self._arrived_at,
                ended_at=self._clock(),
                first_output_s=self.first_output_s,
                error="" if self.outcome == "finished" else self._why_it_ended(),
            )
        if self._is_released:
            self.work = _DONE

    def _why_it_ended(self) -> str:
        return self.outcome or "" if self._error is None else str(self._error.code)

    def conclude(self, *, is_made_again: bool = False) -> None:
        """Settle what finished, or leave that to the attempt that takes its place; once.

        A request with `Takes` waits for this: only its reader can tell whether its output is what
        an earlier attempt has told, and a lease that was settled can't be booked on again.

        Args:
            is_made_again: Whether the output is discarded.
        """
        settle, self._settle = self._settle, None
        if settle is not None and not is_made_again:
            settle()

    async def until_known(self) -> None:
        """Wait until `usage` is final; an engine may tell last tokens behind the end."""
        if self.state is not State.SETTLED:
            self._known = self._known or asyncio.Event()
            await self._known.wait()

    def take_back(self) -> None:
        """Nothing was computed of a request that was put off, so it uses no lease."""
        self.lease.settle(self._outbox, Usage(), "aborted", is_unused=True)

    def lease_report(self) -> LeaseReport | None:
        """What the lease has used so far, for the auth worker; None before it has one."""
        return self.lease.report(self.work.usage(), self.work.choice_usages())

    async def _start(self) -> None:
        self._check_open()
        try:
            granted = await self._reserve()
        except DeniedError as error:
            if error.is_unpriced:
                self._check_model_exists()
            raise
        if self._takes is not None:
            await self._takes.on_lease(granted.lease_id)
        try:
            self.work.check()
        except ModelNotFoundError as error:
            assert self.identity is not None, "it was granted"
            raise error.seen_by(self.identity.may_see) from None
        admitted = Admitted(
            granted.tenant,
            self._priority(granted.priority),
            granted.lease_id,
            granted.max_completion_tokens,
        )
        with self.step("prepare"):
            corrected = await self.work.prepare(admitted)
        self.state = self.state.then(State.PREPARED)
        if corrected is not None:
            await self.lease.correct(*corrected)
        self.state = self.state.then(State.RUNNING)
        await self.work.run()

    def _check_model_exists(self) -> None:
        """A model that there isn't has no price either, and none that anybody could set."""
        try:
            self.work.check()
        except ModelNotFoundError as error:
            known = self._identities.known(self.caller.key_digest)
            raise error.seen_by(lambda name: known is not None and known.may_see(name)) from None
        except GatewayError:
            pass  # what it was denied for comes first

    async def _reserve(self) -> Granted:
        """Reserve the bound; what needs no grant goes out beside the question."""
        digest, bound = self.caller.key_digest, self.work.bound()
        question = bridge.authorize(
            self.request_id,
            key_digest=digest,
            endpoint=self.work.endpoint,
            model=self.work.model,
            address=self.caller.address,
            wait_s=self._auth.timeout_s,
            trace_id=self.trace_id,
            traceparent=self.traceparent,
            prompt_tokens=bound.prompt_tokens,
            completion_tokens=bound.completion_tokens,
            is_metered=True,  # it counts as a request even if it uses no tokens
            scope=self._scope,
            asked_tokens=bound.asked_tokens,
            is_streaming=bound.is_streaming,
            uses_tools=bound.uses_tools,
            is_token=bool(self.caller.token),
            end_user=self.caller.end_user or bound.end_user,
        )
        answer = self._auth.ask(question, self.caller.token)
        granted: Granted | None = None
        try:
            known = self._identities.may_begin(
                digest, self._scope, self.work.endpoint, self.caller.address
            )
            if known is not None:
                self.work.begin(Admitted(known.tenant, self._priority(known.priority)))
            with self.step("authorize"):
                granted = await answer
        except DeniedError as error:
            self._identities.note_denied(digest, error, self.caller.address)
            raise
        finally:
            self._auth.close(self.request_id)
            if granted is None:
                self._auth.give_back(answer)
        self.identity = self._identities.note_granted(
            digest, granted, self._scope, self.work.endpoint, self.caller.address
        )
        self.lease.on_granted(granted, bound, question)
        if self.caller.asked is not None:
            self.caller.asked.append(question)
        if self.caller.errand is not None and granted.lease_id:
            self.caller.errand.on_granted(granted.lease_id)
        self.state = self.state.then(State.RESERVED)
        if known is not None and known != self.identity:
            self.work.withdraw()
        return granted

    def _priority(self, granted: int) -> int:
        """Of the key, or lower where no client waits."""
        errand = self.caller.errand
        return granted if errand is None else max(granted, errand.priority)

    def _on_deadline(self) -> None:
        self.fail(self._too_late(self.work.model))

    def give_up(self) -> None:
        """It has ended: wait no longer for what workers may still report of it."""
        self.work.give_up()
        self.on_idle()


def _is_ours(error: GatewayError | None) -> bool:
    return error is None or isinstance(error, ClientDisconnectedError) or error.code in _OURS
