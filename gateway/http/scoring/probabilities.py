"""What the log probabilities of labels say: probabilities, a score, and how sure that is.

The rules are those of transformers' decision models (`transformers.decision`), without temperature.
"""

import math
from collections.abc import Sequence
from typing import Final

_NUM_DIGITS: Final = 6
"""More would show in which company a question was computed."""


def shown(number: float) -> float:
    """A number as it is told to clients."""
    return round(number, _NUM_DIGITS) + 0.0  # no minus before a zero


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """The chance of each label, given that the answer is one of them."""
    most = max(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def label_mass(logprobs: Sequence[float]) -> float:
    """The chance that the model answers with any of the labels; low where none fits."""
    return min(1.0, math.fsum(map(math.exp, logprobs)))


def choice_confidence(chances: Sequence[float]) -> float:
    """0 where the likeliest option is as likely as chance has it, 1 where it is certain."""
    if len(chances) == 1:
        return 1.0
    by_chance = 1.0 / len(chances)
    return max(0.0, (max(chances) - by_chance) / (1.0 - by_chance))


def expected_level(chances: Sequence[float]) -> float:
    """The mean of the levels' numbers, the lowest being 0."""
    return math.fsum(number * chance for number, chance in enumerate(chances))


def score_confidence(chances: Sequence[float]) -> float:
    """1 where one level is certain, 0 where levels are as spread as evenly likely ones are."""
    num = len(chances)
    if num == 1:
        return 1.0
    best = chances.index(max(chances))
    spread = math.fsum(chance * abs(number - best) for number, chance in enumerate(chances))
    even = math.fsum(abs(number - (num - 1) / 2) for number in range(num)) / num
    return max(0.0, 1.0 - spread / even)
