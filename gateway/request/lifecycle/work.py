"""The seam between the one life of a request and the kinds of work that live it."""

from contextlib import AbstractContextManager
from typing import Protocol

from gateway.bridge import Outcome
from gateway.errors import GatewayError
from gateway.request.leases.lease import RequestLease
from gateway.request.leases.work_bound import Admitted, Bound
from gateway.request.lifecycle.background import Background
from gateway.request.lifecycle.work_trace import REQUEST_MODEL
from protocol.runtime.tracing import Attributes
from protocol.wire.messages import StreamUsage, Usage


class Owner(Protocol):
    """The request that a piece of work belongs to.

    Attributes:
        request_id: Made by the gateway.
        trace_id: The client's `X-Request-ID`.
        traceparent: Where in a trace it belongs, for workers; empty when it isn't traced.
        lease: What the work may use.
        background: Runs things beside the request, which end with it.
    """

    request_id: str
    trace_id: str
    traceparent: str
    lease: RequestLease
    background: Background

    def step(self, name: str) -> AbstractContextManager[None]:
        """What happens within is a step of the request's trace."""
        ...

    def end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        """End the request; the first call counts."""
        ...

    def on_idle(self) -> None:
        """After `abort`, nothing is at a worker any more: the usage is final."""
        ...

    def remaining_s(self) -> float:
        """Seconds that the request has left."""
        ...


class Work(Protocol):
    """One kind of metered work: chat, completion, embedding, tokenising, parsing, a tool.

    It is long because each step of a request's life is a method.

    A `Request` calls `attach` once, then `bound`, `begin` or not, `check`, `prepare` and `run`, in
    this order, and `abort` at any time, once. `is_at_worker` says when the settlement has to wait.

    Attributes:
        endpoint: The route template, for limits and logs.
        model: Public name; empty for work without one.
    """

    @property
    def endpoint(self) -> str:
        """The route template."""
        ...

    @property
    def model(self) -> str:
        """Public name; empty for work without one."""
        ...

    @property
    def is_served(self) -> bool:
        """Whether engines serve the model of that name, as far as `check` has come."""
        ...

    def attach(self, owner: Owner) -> None:
        """Whose work it is."""
        ...

    def bound(self) -> Bound:
        """What it may use, as far as that is known before anything is tokenised."""
        ...

    def begin(self, admitted: Admitted) -> None:
        """Send ahead what needs no grant, if there is a free slot for it; waits for nothing.

        Args:
            admitted: Who the caller was a moment ago; `lease_id` is still empty.
        """
        ...

    def withdraw(self) -> None:
        """The caller turned out to be refused, or somebody else: take back what `begin` did."""
        ...

    def check(self) -> None:
        """Refuse what can't be served here; after the grant, because it tells of what there is.

        Raises:
            GatewayError: Why not.
        """
        ...

    async def prepare(self, admitted: Admitted) -> tuple[int, int] | None:
        """Find a slot and learn what the work really needs.

        Returns:
            Prompt and output tokens to reserve instead of the bound; None leaves it.

        Raises:
            GatewayError: It can't be done.
        """
        ...

    async def run(self) -> None:
        """Do the work, or begin it where its output comes later; the owner's `end` is its end.

        Raises:
            GatewayError: It can't be done.
        """
        ...

    def abort(self, error: GatewayError | None) -> None:
        """Stop at every worker and release everything; called once, when the request has ended.

        Args:
            error: Why, for who still reads; None after the regular end or when nobody does.
        """
        ...

    def give_up(self) -> None:
        """No end came after `abort`: take what is known for the usage."""
        ...

    @property
    def has_begun(self) -> bool:
        """Whether a worker computed anything for it, so that it counts as used."""
        ...

    @property
    def is_at_worker(self) -> bool:
        """Whether a worker may still report what it used."""
        ...

    @property
    def first_output_at(self) -> float | None:
        """When the first output came, on the request's clock; None where there was none."""
        ...

    def usage(self) -> Usage:
        """What was used so far; final once nothing is at a worker."""
        ...

    def choice_usages(self) -> tuple[StreamUsage, ...]:
        """The same by choice, where there are several."""
        ...

    def observe(self, outcome: Outcome, duration_s: float) -> None:
        """Count it in the metrics; called once, at the settlement."""
        ...

    def trace_attributes(self) -> Attributes:
        """What its trace tells of it, beside usage and model; called once, at the settlement."""
        ...


class SimpleWork:
    """A base for work that is done when `run` returns, and that charges nothing by itself.

    Subclasses have `endpoint` and `model`, and override what is different for them.

    Attributes:
        asked_model: What the client calls the model; empty for work without one.
    """

    owner: Owner
    asked_model = ""
    is_served = False

    def attach(self, owner: Owner) -> None:
        """Whose work it is."""
        self.owner = owner

    def bound(self) -> Bound:
        """No tokens; it counts as a request."""
        return Bound()

    def begin(self, admitted: Admitted) -> None:
        """Nothing is begun before the grant."""

    def withdraw(self) -> None:
        """Nothing was begun."""

    def check(self) -> None:
        """Whoever does the work says what is wrong with it."""

    async def prepare(self, admitted: Admitted) -> None:
        """It needs no slot."""

    def abort(self, error: GatewayError | None) -> None:
        """What runs ends with the start, which is cancelled."""

    def give_up(self) -> None:
        """Nothing is waited for."""

    @property
    def first_output_at(self) -> float | None:
        """It has no output before its end."""
        return None

    @property
    def is_at_worker(self) -> bool:
        """Nobody reports later what was used."""
        return False

    def usage(self) -> Usage:
        """No tokens."""
        return Usage()

    def choice_usages(self) -> tuple[StreamUsage, ...]:
        """There are no choices."""
        return ()

    def observe(self, outcome: Outcome, duration_s: float) -> None:
        """The HTTP metrics count it."""

    def trace_attributes(self) -> Attributes:
        """What the client calls its model."""
        return {REQUEST_MODEL: self.asked_model} if self.asked_model else {}
