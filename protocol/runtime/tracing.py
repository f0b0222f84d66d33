"""Traces of requests for an OpenTelemetry collector, off unless `PENSTOCK_OTLP_ENDPOINT` names one.

A process tells spans after they have ended, with times that it knows anyway; only the ids of a
request's trace travel with it, as W3C `traceparent` (https://www.w3.org/TR/trace-context/). The SDK
is imported where traces are on, and sends from a thread of its own out of a bounded queue: what a
collector doesn't take in time is dropped.
"""

import random
import re
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared

_TRACEPARENT: Final = re.compile(
    r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
_SAMPLED: Final = 0x01

SpanKind = Literal["internal", "server"]
Value: TypeAlias = str | int | float | bool | tuple[str, ...]
Attributes: TypeAlias = Mapping[str, Value]


class TraceContext(NamedTuple):
    """Where in which trace something happens; W3C's trace id and parent id."""

    trace_id: int
    span_id: int

    def traceparent(self) -> str:
        """As it travels; whoever has one is sampled."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def child(self) -> "TraceContext":
        """A new place in the same trace."""
        return TraceContext(self.trace_id, _random_bits(64))


class Span(NamedTuple):
    """Something that has ended.

    Attributes:
        name: Of few different ones.
        context: Its own place.
        parent_id: The span that it belongs to; 0 where its trace begins.
        started_at: On the process's monotonic clock, seconds, as is the next.
        attributes: Never a prompt, an output or a key.
        kind: `server` for what a client asked for.
        error: Why it failed; empty otherwise.
        link: Another trace that led to this one.
    """

    name: str
    context: TraceContext
    parent_id: int
    started_at: float
    ended_at: float
    attributes: Attributes = MappingProxyType({})
    kind: SpanKind = "internal"
    error: str = ""
    link: TraceContext | None = None


class Tracer(Protocol):
    """Takes the spans of one process; called in any thread, never waits."""

    @property
    def is_on(self) -> bool:
        """Whether somebody wants them."""
        ...

    def tell(self, span: Span) -> None:
        """Take a span."""
        ...

    def close(self) -> None:
        """Send what there is, for a few seconds at most."""
        ...


class _NoTracer:
    is_on = False

    def tell(self, span: Span) -> None:
        """Nobody wants it."""

    def close(self) -> None:
        """There is nothing."""


NO_TRACER: Final[Tracer] = _NoTracer()
_tracer: Tracer = NO_TRACER


def context_of(traceparent: str) -> TraceContext | None:
    """The place that a `traceparent` names; None for none, a malformed one, or one not sampled."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or not int(found[3], 16) & _SAMPLED:
        return None
    return TraceContext(int(found[1], 16), int(found[2], 16))


def is_declined(traceparent: str) -> bool:
    """Whether a `traceparent` is a good one whose sender decided against keeping the trace."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found is not None and not int(found[3], 16) & _SAMPLED


def new_trace() -> TraceContext:
    """The beginning of a trace."""
    return TraceContext(_random_bits(128), _random_bits(64))


def is_sampled(trace_id: int, ratio: float) -> bool:
    """Whether a trace is among those that are kept; the same for all processes."""
    return (trace_id & (2**64 - 1)) < ratio * 2**64


def _random_bits(number: int) -> int:
    """Not zero, which is no id; ids are names, not secrets."""
    return random.getrandbits(number) or 1


def setup(service: str, environ: Mapping[str, str], *, build: str = "") -> None:
    """Let this process tell its spans, if its settings name a collector.

    Args:
        service: `gateway`, `engine`, `auth` or `toolparser`.
        environ: Such as `os.environ`.
        build: Version of the code.

    Raises:
        ConfigurationError: The collector's URL is none, or the SDK isn't installed.
    """
    global _tracer
    close()
    _tracer = _open(service, environ, build)


def is_on() -> bool:
    """Whether somebody wants the spans of this process."""
    return _tracer.is_on


def tell(span: Span) -> None:
    """Tell a span; nothing happens while traces are off."""
    _tracer.tell(span)


def tell_step(
    traceparent: str,
    name: str,
    started_at: float,
    ended_at: float,
    attributes: Attributes | None = None,
    error: str = "",
) -> None:
    """Tell a step of the request that a message of the wire belongs to.

    Args:
        traceparent: Of the message; empty for one that isn't traced.
        name: Of few different ones.
        started_at: On the monotonic clock, seconds, as is `ended_at`.
        ended_at: When it was over.
        attributes: Never a prompt, an output or a key.
        error: Why it failed; empty otherwise.
    """
    if not traceparent or not _tracer.is_on:
        return
    parent = context_of(traceparent)
    if parent is not None:
        place = parent.child()
        span = Span(
            name, place, parent.span_id, started_at, ended_at, attributes or {}, error=error
        )
        _tracer.tell(span)


def close() -> None:
    """Send what there is, for a while; traces are off from then on."""
    global _tracer
    ending, _tracer = _tracer, NO_TRACER
    ending.close()


def _open(service: str, environ: Mapping[str, str], build: str) -> Tracer:
    endpoint = shared.OTLP_ENDPOINT.read(environ)
    if endpoint is None:
        return NO_TRACER
    if not re.match(r"https?://[^/]", endpoint):
        raise ConfigurationError(
            f"{shared.OTLP_ENDPOINT.name} must be the URL of a collector, such as"
            " http://localhost:4318."
        )
    try:
        from protocol.runtime.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigurationError(
            f"{shared.OTLP_ENDPOINT.name} needs the OpenTelemetry SDK:"
            f' {sys.executable} -m pip install "penstock[otlp]".'
        ) from error
    return OtlpTracer(service, endpoint, build)
