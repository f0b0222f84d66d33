"""Headers of metered answers: where the caller stands in its limits, and who answered."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol
from urllib.parse import quote

from gateway.http.answers.limit_warnings import warning_headers
from gateway.http.errors.error_table import limit_headers
from protocol.wire.messages import LimitState, LimitWarning

MODEL_HEADER: Final = "X-Penstock-Model"
"""Who answered, where the request named an alias, or a model that a fallback stood in for."""


class Granted(Protocol):
    """What was granted: the lease of a request, or of several that make one answer together."""

    @property
    def limits(self) -> LimitState:
        """Where the caller stands."""
        ...

    @property
    def warnings(self) -> Sequence[LimitWarning]:
        """Its limits that are used up to a threshold."""
        ...


def answer_headers(
    granted: Granted,
    *,
    model: str = "",
    asked: str | None = None,
    tell_limits: Callable[[LimitState], dict[str, str]] = limit_headers,
) -> dict[str, str]:
    """The headers that every answer of a metered route has.

    Args:
        granted: What the answer was made with.
        model: Who answered; empty where no model did.
        asked: The model as the client named it; None where it named none.
        tell_limits: In the words of the API that was asked.
    """
    headers = tell_limits(granted.limits) | warning_headers(granted.warnings)
    if asked is not None and model != asked:
        headers[MODEL_HEADER] = quote(model, safe="/:")
    return headers
