"""What a collector of traces is told of one request: its steps, and attributes of generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ for the names; texts of prompts and outputs, and
keys, are never among them.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from gateway.request.jobs.job import GenerationJob
from protocol.runtime import tracing
from protocol.runtime.tracing import Attributes, Span, TraceContext, Value
from protocol.wire.messages import Usage

PROVIDER: Final = "penstock"
REQUEST_MODEL: Final = "gen_ai.request.model"
"""What the client calls the model: maybe an alias, or one that another one stands in for."""
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/responses/compact": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""What the conventions call a route; others go by their path."""


class TracedWork(Protocol):
    """As much of a piece of work as its trace tells."""

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
        """Whether engines serve that model."""
        ...

    def trace_attributes(self) -> Attributes:
        """What else is told of it."""
        ...


class WorkTrace:
    """The part of a trace that belongs to one piece of metered work.

    Args:
        parent: Of the HTTP request.

    Attributes:
        traceparent: What workers get, so that their spans belong to this one.
    """

    def __init__(self, parent: TraceContext) -> None:
        self._parent_id = parent.span_id
        self._place = parent.child()
        self.traceparent = self._place.traceparent()

    def tell_step(self, name: str, began_at: float, ended_at: float) -> None:
        """A step of it is over; times on the monotonic clock, seconds."""
        place = self._place
        tracing.tell(Span(name, place.child(), place.span_id, began_at, ended_at))

    def tell(
        self,
        work: TracedWork,
        usage: Usage,
        *,
        began_at: float,
        ended_at: float,
        first_output_s: float | None,
        error: str,
    ) -> None:
        """All of it is over.

        Args:
            work: What was asked for.
            usage: What it used.
            began_at: On the monotonic clock, seconds, as is the next.
            ended_at: When it was settled.
            first_output_s: From its beginning to the first output; None where there was none.
            error: Why it failed, as a code; empty otherwise.
        """
        operation = _OPERATIONS.get(work.endpoint, work.endpoint)
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
            **work.trace_attributes(),
        }
        if work.model:
            attributes.setdefault(REQUEST_MODEL, work.model)
            attributes["gen_ai.response.model"] = work.model
        if first_output_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = first_output_s
        if error:
            attributes["error.type"] = error
        # Names of spans are few: those of models that exist, none that a client made up.
        name = f"{operation} {work.model}" if work.is_served else operation
        tracing.tell(
            Span(name, self._place, self._parent_id, began_at, ended_at, attributes, error=error)
        )


def generation_attributes(
    job: GenerationJob, asked_model: str, finish_reasons: Sequence[str]
) -> Attributes:
    """What of a chat or completion was asked for, of which model, and how its choices ended."""
    sampling = job.sampling
    attributes: dict[str, Value] = {
        REQUEST_MODEL: asked_model,
        "gen_ai.request.stream": job.options.is_streaming,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
    }
    if job.options.num_choices != 1:
        attributes["gen_ai.request.choice.count"] = job.options.num_choices
    if job.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = job.max_tokens
    if finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = tuple(finish_reasons)
    return attributes
