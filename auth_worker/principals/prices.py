"""What tokens and requests cost: versioned prices by model, and the sum of one request."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

EMBEDDINGS_ENDPOINT: Final = "/v1/embeddings"
TOKENS_PER_PRICE: Final = 1_000_000
"""Prices of tokens are for so many of them."""
_MAX_CACHED_MODELS: Final = 4096
_WILDCARDS: Final = frozenset("*?[")
_MS_A_SECOND: Final = 1000


@dataclass(frozen=True, slots=True)
class Price:
    """One version of the price of some models, in micro-units of the deployment's currency.

    Attributes:
        models: A model's own name, or a glob of such; `*` is the price of everything that
            has none of its own.
        valid_from_ms: Unix milliseconds; the version before holds until then.
        prompt: A million prompt tokens that were not cached, as are the next three.
        cached_prompt: Prompt tokens whose computation was saved.
        completion: Completion tokens that are no reasoning.
        reasoning: Completion tokens that are.
        embedding: Tokens that were embedded.
        request: One request for which something was computed, whatever its tokens.
        is_ended: From `valid_from_ms` on there is no price.
    """

    price_id: str
    version: int
    models: str
    valid_from_ms: int
    prompt: int
    cached_prompt: int
    completion: int
    reasoning: int
    embedding: int
    request: int = 0
    is_ended: bool = False


class PriceTable:
    """All prices with all their versions; a model's is the one that names it most closely.

    That is its own name before a glob, a glob with more characters of its own before one with
    fewer, and of equals the newest.
    """

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._versions: dict[str, tuple[Price, ...]] = {}  # by price id, the newest first
        # The ids of prices by what their names and globs begin with, up to the first wildcard.
        self._by_beginning: dict[str, dict[str, None]] = {}
        self._lengths: list[int] = []  # of those beginnings
        self._of_model: dict[str, tuple[tuple[Price, ...], ...]] = {}
        # By model what was found last, and the Unix milliseconds from and to which it is so.
        self._found: dict[str, tuple[Price | None, float, float]] = {}
        self._expected: list[int] = []  # when versions begin that aren't durable yet
        self._last_moment = 0  # by which a request was priced
        for price in prices:
            self.put(price)

    def __contains__(self, price_id: object) -> bool:
        return price_id in self._versions

    def put(self, price: Price) -> None:
        """Take a version in, or replace the one of its number."""
        others = (
            known
            for known in self._versions.get(price.price_id, ())
            if known.version != price.version
        )
        self._versions[price.price_id] = tuple(
            sorted([*others, price], key=lambda known: -known.version)
        )
        beginning = _beginning_of(price.models)
        self._by_beginning.setdefault(beginning, {})[price.price_id] = None
        if len(beginning) not in self._lengths:
            self._lengths = sorted([*self._lengths, len(beginning)])
        self._of_model.clear()
        self._found.clear()

    def expect(self, begins_ms: int) -> None:
        """A version that begins then is on its way to the disk; see `moment`."""
        self._expected.append(begins_ms)

    def expect_no_more(self, begins_ms: int) -> None:
        """It is there, and was put in, or it was refused."""
        self._expected.remove(begins_ms)

    def moment(self, now_ms: int) -> int:
        """By which Unix millisecond a request is priced that is let in now.

        It is before every version that isn't durable yet. So the price of that moment is the one of
        now, also for a process that finds the version after a kill.
        """
        expected = self._expected
        moment = min(now_ms, min(expected) - 1) if expected else now_ms
        self._last_moment = moment
        return moment

    def beginning(self, now_ms: int) -> int:
        """The Unix millisecond in which a version may begin at the earliest that is said now.

        The next one, where a request of this one is priced by the version before. (So it is where
        the clock has been set back by less than a second.)
        """
        after_last = self._last_moment + 1
        return after_last if now_ms < after_last < now_ms + _MS_A_SECOND else now_ms

    def versions(self, price_id: str) -> tuple[Price, ...]:
        """All versions of a price, the newest first; the newest may begin later."""
        return self._versions.get(price_id, ())

    def find(self, models: str) -> Price | None:
        """The newest version of the price whose `models` are just this text; None without one."""
        for newest, *_ in self._versions.values():
            if newest.models == models and not newest.is_ended:
                return newest
        return None

    def price_of(self, model: str, at_ms: int) -> Price | None:
        """What a model costs at that Unix millisecond; None when nobody has said."""
        found = self._found.get(model)
        if found is None or not found[1] <= at_ms < found[2]:
            found = self._look_up(model, at_ms)
            if len(self._found) >= _MAX_CACHED_MODELS:
                self._found.clear()  # callers choose the names
            self._found[model] = found
        return found[0]

    def _beginning_like(self, model: str) -> Iterator[tuple[Price, ...]]:
        """The prices that may be a model's: any text may be its name, however many globs there are.

        Each is given once.
        """
        given: dict[str, None] = {}
        for length in self._lengths:
            if length > len(model):
                break
            given |= self._by_beginning.get(model[:length], {})
        return (self._versions[price_id] for price_id in given)

    def _look_up(self, model: str, at_ms: int) -> tuple[Price | None, float, float]:
        candidates = self._of_model.get(model)
        if candidates is None:
            candidates = tuple(
                versions
                for versions in self._beginning_like(model)
                if any(fnmatchcase(model, price.models) for price in versions)
            )
            if len(self._of_model) >= _MAX_CACHED_MODELS:
                self._of_model.clear()  # callers choose the names
            self._of_model[model] = candidates
        best: Price | None = None
        moments = [price.valid_from_ms for versions in candidates for price in versions]
        since_ms = max((moment for moment in moments if moment <= at_ms), default=-math.inf)
        until_ms = min((moment for moment in moments if moment > at_ms), default=math.inf)
        for versions in candidates:
            price = _valid(versions, at_ms)
            if price is None or not fnmatchcase(model, price.models):
                continue
            if best is None or _closeness(price) > _closeness(best):
                best = price
        return best, since_ms, until_ms


def begin_of(valid_from: int, said_at_ms: int) -> int:
    """When a version begins, in Unix milliseconds: not before it was said.

    Args:
        valid_from: Unix seconds; 0 = at once.
        said_at_ms: When it was said.
    """
    return max(valid_from * 1000, said_at_ms)


def cost(
    price: Price,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int = 0,
    reasoning_tokens: int = 0,
    endpoint: str = "",
    has_begun: bool = True,
) -> int:
    """What one request costs in micro-units, rounded once, half up.

    Args:
        price: Of its model.
        prompt_tokens: With the cached ones.
        completion_tokens: With those of reasoning.
        cached_tokens: Of the prompt.
        reasoning_tokens: Of the completion.
        endpoint: The route template; embedding has a price of its own.
        has_begun: A worker began to compute; without that, and without tokens, it is free.
    """
    if not (has_begun or prompt_tokens or completion_tokens):
        return 0
    if endpoint == EMBEDDINGS_ENDPOINT:
        total = prompt_tokens * price.embedding
    else:
        cached, reasoning = min(cached_tokens, prompt_tokens), reasoning_tokens
        reasoning = min(reasoning, completion_tokens)
        total = (
            (prompt_tokens - cached) * price.prompt
            + cached * price.cached_prompt
            + (completion_tokens - reasoning) * price.completion
            + reasoning * price.reasoning
        )
    return (total + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE + price.request


def highest_cost(
    price: Price, prompt_tokens: int, completion_tokens: int, endpoint: str = ""
) -> int:
    """The most that so many tokens can cost, whichever of them are cached or reasoning."""
    if endpoint == EMBEDDINGS_ENDPOINT:
        total = prompt_tokens * price.embedding
    else:
        of_prompt, of_completion = price.prompt, price.completion
        if price.cached_prompt > of_prompt:
            of_prompt = price.cached_prompt
        if price.reasoning > of_completion:
            of_completion = price.reasoning
        total = prompt_tokens * of_prompt + completion_tokens * of_completion
    return (total + TOKENS_PER_PRICE // 2) // TOKENS_PER_PRICE + price.request


def _valid(versions: tuple[Price, ...], at_ms: int) -> Price | None:
    """The version of a moment; None before the first, and when it says that there is none."""
    for price in versions:
        if price.valid_from_ms <= at_ms:
            return None if price.is_ended else price
    return None


def _beginning_of(models: str) -> str:
    """What every name has that a glob fits, at its front; all of a name."""
    return next((models[:at] for at, char in enumerate(models) if char in _WILDCARDS), models)


def _closeness(price: Price) -> tuple[bool, int, int, str]:
    num_own = sum(char not in _WILDCARDS for char in price.models)
    return _WILDCARDS.isdisjoint(price.models), num_own, price.valid_from_ms, price.price_id
