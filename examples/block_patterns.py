"""A hook that refuses prompts which match a pattern, and keeps temperatures low.

A package of your own names it in its pyproject.toml:

    [project.entry-points."penstock.hooks"]
    patterns = "block_patterns:PatternHook"

Installed beside Penstock, it sees every request for output; `BLOCKED_PATTERNS` holds regular
expressions, one a line. `GET /v1/hooks/patterns/counts` tells how many it has refused.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from gateway.hooks.hook import Hook, HookAnswer, HookCall, HookRequest, Refusal

MAX_TEMPERATURE = 1.0


class PatternHook(Hook):
    """Refuses by pattern."""

    def __init__(self) -> None:
        lines = os.environ.get("BLOCKED_PATTERNS", "").splitlines()
        self._patterns = [re.compile(line, re.IGNORECASE) for line in lines if line]
        self._num_refused = 0

    def refine_request(self, request: HookRequest) -> Refusal | None:
        """Refuse what matches; tag what is long."""
        texts = list(texts_of(request.body))
        for pattern in self._patterns:
            if any(pattern.search(text) for text in texts):
                self._num_refused += 1
                request.tags["blocked"] = pattern.pattern
                return Refusal("This server doesn't answer such prompts.", risk_score=0.9)
        if sum(map(len, texts)) > 10_000:
            request.tags["size"] = "long"
        return None

    async def refine_sampling(self, request: HookRequest, sampling: dict[str, Any]) -> None:
        """No wild answers."""
        if isinstance(sampling.get("temperature"), int | float):
            sampling["temperature"] = min(sampling["temperature"], MAX_TEMPERATURE)

    async def answer(self, call: HookCall) -> HookAnswer | None:
        """How many were refused."""
        if (call.method, call.path) != ("GET", "counts"):
            return None
        return HookAnswer({"refused": self._num_refused})


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a request's body, wherever it stands."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)
