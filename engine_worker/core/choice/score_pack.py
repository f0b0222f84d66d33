"""Questions that are scored after one beginning, as rows of tokens of one computation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

LEAST_OF_A_KIND: Final = 4
"""For fewer questions a prompt of their kind costs more than rows that all begin with its words: it
computes up to a block of what is before them again, and takes a step and calls of its own."""


@dataclass(frozen=True, slots=True)
class ScoreShape:
    """The shape of one scoring program: so many rows of so many tokens."""

    num_rows: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ScoreLimits:
    """What the calls of a runner's scoring programs hold.

    Attributes:
        shapes: By their tokens, rising.
        max_pairs: Scored tokens of a pack.
        max_places: Of each shape, places that something is scored after.
        least_of_a_kind: So many questions of a kind, where there are several kinds, follow a prompt
            with what that kind begins with; of fewer each row begins with it. With 1 how a question
            is computed depends on no other.
    """

    shapes: tuple[ScoreShape, ...]
    max_pairs: int
    max_places: tuple[int, ...]
    least_of_a_kind: int = LEAST_OF_A_KIND

    @property
    def max_tokens(self) -> int:
        """Of a row."""
        return self.shapes[-1].num_tokens

    @property
    def max_label_tokens(self) -> int:
        """Of a label, whatever stands before it."""
        return min(self.max_tokens, self.max_pairs, *self.max_places)


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """One question: what follows the shared beginning, and the labels that may follow that.

    Attributes:
        token_ids: At least one.
        labels: At least one, each of at least one token.
        first: Number of its first label among those of all questions.
        beginning: Tokens before its own, behind the shared beginning; its kind of question has
            them, so that others may begin with the same ones.
    """

    token_ids: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    first: int
    beginning: tuple[int, ...] = ()

    def joined(self) -> "ScoredTexts":
        """The same question with what its kind begins with among its own tokens."""
        if not self.beginning:
            return self
        return replace(self, token_ids=(*self.beginning, *self.token_ids), beginning=())


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A token that is scored after another one.

    Attributes:
        row: Of the pack.
        offset: Of the token in its row that this one comes after.
        token_id: What is scored.
        label: Number of the label that it is part of.
    """

    row: int
    offset: int
    token_id: int
    label: int


@dataclass(slots=True)
class ScorePack:
    """Rows that each follow the shared beginning by themselves, and what is scored in them.

    Attributes:
        shape: Of the program that computes them.
        rows: Tokens of each row.
        pairs: In the order of the rows.
    """

    shape: ScoreShape
    rows: list[tuple[int, ...]] = field(default_factory=list)
    pairs: list[ScoredPair] = field(default_factory=list)

    def first_rows(self, num_rows: int) -> "tuple[ScorePack, ScorePack | None]":
        """The pack of its first rows, at least one, and the pack of all others if there are any."""
        if num_rows >= len(self.rows):
            return self, None
        first = ScorePack(self.shape, self.rows[:num_rows])
        rest = ScorePack(self.shape, self.rows[num_rows:])
        for pair in self.pairs:
            if pair.row < num_rows:
                first.pairs.append(pair)
            else:
                rest.pairs.append(
                    ScoredPair(pair.row - num_rows, pair.offset, pair.token_id, pair.label)
                )
        return first, rest


def packs_of(questions: Iterable[ScoredTexts], limits: ScoreLimits) -> Iterator[ScorePack]:
    """The packs that score every label of some questions.

    A row is in the smallest shape that it fits, so it is computed in the same one whatever else is
    asked. Labels of a question that are longer than one token have rows of their own. A row that is
    longer than any shape must not come: see `fits`.
    """
    open_packs = {shape: ScorePack(shape) for shape in limits.shapes}
    num_places = dict.fromkeys(limits.shapes, 0)
    most = dict(zip(limits.shapes, limits.max_places, strict=True))
    for texts in questions:
        for path, pairs in _rows_of(texts, limits.max_pairs):
            shape = next(one for one in limits.shapes if one.num_tokens >= len(path))
            pack, places = open_packs[shape], len({offset for offset, _, _ in pairs})
            if (
                len(pack.rows) == shape.num_rows
                or len(pack.pairs) + len(pairs) > limits.max_pairs
                or num_places[shape] + places > most[shape]
            ):
                yield pack
                pack = open_packs[shape] = ScorePack(shape)
                num_places[shape] = 0
            num_places[shape] += places
            row = len(pack.rows)
            pack.rows.append(path)
            pack.pairs += [
                ScoredPair(row, offset, token_id, label) for offset, token_id, label in pairs
            ]
    for pack in open_packs.values():
        if pack.rows:
            yield pack


def fits(num_tokens: int, label: Sequence[int], limits: ScoreLimits) -> bool:
    """Whether a label after so many tokens of a question can be scored in a pack."""
    num_pairs = len(label)
    most = min(limits.max_pairs, *limits.max_places)
    return num_tokens + num_pairs - 1 <= limits.max_tokens and num_pairs <= most


def _rows_of(
    texts: ScoredTexts, max_pairs: int
) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int, int]]]]:
    """The rows of a question, each with (offset, token id, label number) of what it scores."""
    by_path: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    last = len(texts.token_ids) - 1
    for number, label in enumerate(texts.labels, start=texts.first):
        path = (*texts.token_ids, *label[:-1])
        pairs = by_path.setdefault(path, [])
        if len(pairs) + len(label) > max_pairs:
            yield path, pairs
            pairs = by_path[path] = []
        pairs += [(last + place, token_id, number) for place, token_id in enumerate(label)]
    yield from by_path.items()
