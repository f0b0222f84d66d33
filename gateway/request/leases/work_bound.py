"""What a piece of work may use, and whose it is."""

from msgspec import Struct


class Bound(Struct, frozen=True):
    """What a piece of work asks for, before anything is tokenised.

    Attributes:
        prompt_tokens: It may use so many at most, of all prompts together.
        completion_tokens: The same of all choices together.
        asked_tokens: Completion tokens that the client named, of all choices together; one each
            where it named none.
        is_streaming: The answer is to be streamed.
        uses_tools: Tools are offered to the model, or one is run.
        end_user: For whom it is, as its body says; empty when it doesn't.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked_tokens: int = 0
    is_streaming: bool = False
    uses_tools: bool = False
    end_user: str = ""


class Admitted(Struct, frozen=True):
    """Whose work it is, once the auth worker has said so.

    Attributes:
        tenant: Salts prompt caches, and shares the queue.
        priority: Lower goes first.
        lease_id: What tokens are charged to; empty for work that uses none.
        max_completion_tokens: All choices together; None = as many as were asked for.
    """

    tenant: str = ""
    priority: int = 0
    lease_id: str = ""
    max_completion_tokens: int | None = None

    def at(self, priority: int) -> "Admitted":
        """The same at another priority."""
        return Admitted(self.tenant, priority, self.lease_id, self.max_completion_tokens)
