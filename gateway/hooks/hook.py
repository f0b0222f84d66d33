"""What a package implements to take part in requests: `Hook`, named by an entry point.

    [project.entry-points."penstock.hooks"]
    patterns = "my_package:PatternHook"

The entry point names a class or function without arguments that makes a `Hook`, once a gateway
process. Methods may be coroutine functions, which must not block; plain ones run in a thread.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

GROUP = "penstock.hooks"
"""The group of entry points."""


@dataclass(slots=True)
class HookRequest:
    """A request for output, before its body is checked against a schema.

    Attributes:
        request_id: Made by the gateway.
        endpoint: `/v1/chat/completions`, `/v1/completions`, `/v1/messages` or `/v1/responses`.
        key_id: Whose key it is; empty while that is not known, or without keys.
        address: The client's.
        headers: With lower-case names; those that carry keys and cookies are left out.
        body: The parsed JSON, to be changed in place. What a hook puts there is checked as what a
            client sends. Credentials for MCP servers read `***`.
        tags: For the access log: short texts by name, to be added to.
    """

    request_id: str
    endpoint: str
    key_id: str
    address: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is not answered (403, `refused_by_hook`).

    Attributes:
        reason: For the client.
        risk_score: 0 to 1; told in the header `X-Penstock-Risk-Score`.
    """

    reason: str
    risk_score: float | None = None


@dataclass(frozen=True, slots=True)
class HookCall:
    """A call of a hook's own route, `/v1/hooks/{name}/{path}`.

    Attributes:
        path: Behind the hook's name, without a leading slash.
        query: The first value of each parameter.
        body: As it came; empty without one.
    """

    request_id: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    key_id: str
    address: str


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """What a hook's own route answers.

    Attributes:
        body: Bytes or text as they are; anything else as JSON.
        media_type: Of bytes and text.
    """

    body: Any
    status: int = 200
    media_type: str = "application/json"


class Hook:
    """Does nothing; subclasses override what they need, each with `def` or `async def`."""

    def start(self) -> Awaitable[None] | None:
        """Called once, before the first request; what it raises stops the gateway."""

    def stop(self) -> Awaitable[None] | None:
        """Called once, after the last request."""

    def refine_request(self, request: HookRequest) -> Awaitable[Refusal | None] | Refusal | None:
        """Look at a request, change it, tag it or refuse it."""

    def refine_sampling(
        self, request: HookRequest, sampling: dict[str, Any]
    ) -> Awaitable[None] | None:
        """Change how tokens are chosen.

        Args:
            request: As `refine_request` has left it.
            sampling: Those of its fields that say so (`SAMPLING_FIELDS`), as the client sent them;
                what is changed, added or taken out here is so in the body.
        """

    def answer(self, call: HookCall) -> Awaitable[HookAnswer | None] | HookAnswer | None:
        """A route of its own; None is a 404."""


SAMPLING_FIELDS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_sequences",
        "stop_token_ids",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "min_tokens",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "ignore_eos",
    }
)
"""Fields of bodies that say how tokens are chosen, and how many."""
