"""What a piece of work may use, and whose it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """What a piece of work may use at most, before anything is tokenised.

    Attributes:
        prompt_tokens: Of all prompts together.
        completion_tokens: Of all choices together.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Admitted:
    """Whose work it is, once the auth worker has said so.

    Attributes:
        tenant: Salts prompt caches, and shares the queue.
        priority: Lower goes first.
        lease_id: What tokens are charged to; empty for work that uses none.
    """

    tenant: str = ""
    priority: int = 0
    lease_id: str = ""
