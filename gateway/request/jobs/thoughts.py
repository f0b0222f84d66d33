"""How long a request's reasoning may be, and what its engine is told of that."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import UnsupportedFieldError
from gateway.request.jobs.job import GenerationJob
from gateway.request.jobs.model_limits import check_version
from protocol.version import EXTRAS_VERSION, ProtocolVersion
from protocol.wire.messages import EngineOffer, ParseOpened, Thought

BUDGET_FIELD = "thinking_token_budget"


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """What ends the reasoning of each choice.

    Attributes:
        thought: How the model writes it.
        max_tokens: Tokens that it may have.
    """

    thought: Thought
    max_tokens: int


def check_budget(job: GenerationJob, offer: EngineOffer, version: ProtocolVersion) -> None:
    """Refuse a budget that a client asks for by number, of a model without reasoning.

    Args:
        job: What is asked for.
        offer: What the model's engines serve.
        version: The oldest wire that one of them speaks.

    Raises:
        UnsupportedFieldError: The model has no reasoning, or an engine can't end it.
    """
    if not job.demands_budget:
        return
    if offer.reasoning_format is None:
        raise UnsupportedFieldError(
            f"The model `{job.model}` has no reasoning that could be ended.", param=BUDGET_FIELD
        )
    check_version(version, BUDGET_FIELD, since=EXTRAS_VERSION)


def thought_limit(
    job: GenerationJob,
    budgets: Mapping[str, int],
    opened: ParseOpened | None,
    version: ProtocolVersion,
) -> ThoughtLimit | None:
    """The limit of the reasoning; None when it may be as long as it wants to, or there is none.

    Args:
        job: What is asked for.
        budgets: Tokens by effort, from the settings.
        opened: What the parser says of the reasoning.
        version: The oldest wire that an engine of the model speaks.

    Raises:
        UnsupportedFieldError: A client asks for a number of tokens, and no marker ends reasoning
            of this format.
    """
    budget = job.thinking_budget
    if budget is None:
        budget = budgets.get(job.reasoning_effort)
    if budget is None or budget < 0 or version < EXTRAS_VERSION:
        return None
    thought = None if opened is None else opened.thought
    if thought is None:
        if job.demands_budget:
            raise UnsupportedFieldError(
                f"No marker ends the reasoning of the model `{job.model}`, so it can't be given a"
                " number of tokens; use `reasoning_effort`.",
                param=BUDGET_FIELD,
            )
        return None
    return None if thought.begins == "no" else ThoughtLimit(thought, budget)
