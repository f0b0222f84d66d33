"""Seeded draws for the grammar, and the split that keeps evaluation out of training."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from tools.demo_model import lists

Item = TypeVar("Item")
Split = Literal["train", "closed", "open"]

HELD_OUT_ONE_IN = 8
_ONSETS = lists.words("b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl sh st th tr")
_VOWELS = lists.words("a e i o u a e i o ai ea io ou")
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "sk"]
# The share of training values that are made up, so that copying is learnt and not a list.
_MADE_UP_SHARE = 0.4


# What people certainly try is always trained, and so never asked at the closed level.
ALWAYS_TRAINED = "trained|"


def is_held_out(combination: str) -> bool:
    """Whether a combination (or a made-up word) belongs to evaluation and never to training."""
    if combination.startswith(ALWAYS_TRAINED):
        return False
    digest = hashlib.sha256(combination.encode()).digest()
    return int.from_bytes(digest[:4]) % HELD_OUT_ONE_IN == 0


@dataclass
class Draw:
    """One conversation's source of randomness, for one split.

    `train` draws from the closed lists and from made-up words outside the held-out set; `closed`
    from the closed lists alone; `open` only from words and names that training never contains.
    """

    rng: random.Random
    split: Split

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.rng.randrange(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different ones of `items`."""
        return self.rng.sample(list(items), count)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return self.rng.randint(low, high)

    def made_up_word(self) -> str:
        """A pronounceable word that belongs to this split: `open` gets the held-out ones."""
        while True:
            num_syllables = self.choice((1, 2, 2, 2, 3, 3))
            word = "".join(
                self.choice(_ONSETS) + self.choice(_VOWELS) + self.choice(_CODAS)
                for _ in range(num_syllables)
            )
            is_for_open = is_held_out("word:" + word) or word in lists.UNSEEN_WORDS
            if len(word) > 2 and is_for_open == (self.split == "open"):
                return word

    def listed(self, kind: str) -> str:
        """A word of `kind` from this split's list, or (often in training) a made-up one."""
        closed, unseen = lists.WORDS[kind]
        if self.split == "open":
            if unseen and self.chance(0.5):
                return self.choice(unseen)
        elif self.split == "closed" or not self.chance(_MADE_UP_SHARE):
            return self.choice(closed)
        word = self.made_up_word()
        return word.capitalize() if closed[0][0].isupper() else word

    def accepts(self, combination: str) -> bool:
        """Whether this split may contain a combination of listed tools, values and phrasings."""
        if self.split == "open":
            return True
        return is_held_out(combination) == (self.split == "closed")
