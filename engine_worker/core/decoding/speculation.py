"""Decides which rows of a step draft their next tokens, by what drafts and steps turned out to be.

A draft token is computed in the same step as the one before it, in a row of its own, and counts
when it equals what is drawn there. That pays when the larger program costs less than the tokens are
worth, so both are measured while serving: the share of right draft tokens by choice
(`ngram_drafts`), and the time of a step by the size of its program, with drafts and without. The
program taken is the one with the most tokens expected per second. Because drafts are judged whether
or not they are computed, text that never repeats costs no step anything.

Both are estimates, and on a busy machine the time of a step says little. So what drafts really
brought is added up (`Account`), and when they lost more than they may, there are none until plain
steps have made up for it.
"""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from engine_worker.core.choice.batch import RowWork
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice.ngram_drafts import WINDOW_TOKENS, ChoiceDrafts
from engine_worker.core.decoding.lookahead import num_wanted

MAX_DRAFT_TOKENS: Final = 15
"""The longest draft of a row, tokens."""
MAX_SLOWDOWN: Final = 1.5
"""A row without a draft never waits longer for the others' drafts than this times a plain step."""
_MAX_READ_TOKENS: Final = 2048
"""Tokens that a step's drafts read at most, a few milliseconds of work."""
_ADVANTAGE: Final = 1.1
"""By how much more tokens per second a draft must promise; times vary."""
_NUM_LATEST: Final = 9
"""Times whose median counts: what the machine does beside some of them changes nothing."""
_FADE: Final = 0.998
"""A time that is not measured counts for less with every step, until it is worth another look."""
_NUM_FIRST: Final = 4
"""Of so many first times the smallest counts: what the machine does beside them only adds."""
_FIRST_FADE: Final = 0.98
_COLD_FADE: Final = 0.9
"""After a single time, which may be that of a program that was never called before."""
_MAX_JUMP: Final = 2.0
"""By how much more than the median one time counts in what drafts have lost."""
_OPTIMISM: Final = 0.5
"""Of the time that a larger program should take longer, what is expected before it was tried."""
_ALLOWED_LOSS: Final = 0.004
"""Of the time of plain steps that drafts may lose, some of it to find out whether they pay."""
_FIRST_CREDIT: Final = 0.8
"""Plain steps that drafts may lose before they have gained any."""
_MIN_CREDIT: Final = -0.5
"""After so much was made up for, it is measured again what machines and texts are like."""
_MAX_CREDIT: Final = 4.0
"""Of what they have gained, how many plain steps they may lose again."""


class SpeculationMode(StrEnum):
    """Whether rows draft: where it pays, never, or wherever they can (for tests)."""

    AUTO = "auto"
    OFF = "off"
    ALWAYS = "always"


class RunningTime:
    """The time of one kind of step; `estimate_s` fades while nobody measures it.

    Attributes:
        middle_s: The median of the latest, seconds; of the first few the smallest.
    """

    def __init__(self, duration_s: float) -> None:
        self._latest = deque([duration_s], maxlen=_NUM_LATEST)
        self.middle_s = duration_s
        self._fade = 1.0

    @property
    def estimate_s(self) -> float:
        """Seconds."""
        return self.middle_s * self._fade

    def measure(self, duration_s: float) -> None:
        """Learn from a step."""
        self._latest.append(duration_s)
        ordered = sorted(self._latest)
        self.middle_s = ordered[len(ordered) // 2 if len(ordered) > _NUM_FIRST else 0]
        self._fade = 1.0

    def fade(self, plain_s: float) -> None:
        """A step of another kind was taken, though this one was possible.

        Args:
            plain_s: Of a plain step. What takes long is looked at again more rarely.
        """
        if len(self._latest) == 1:
            self._fade *= _COLD_FADE
            return
        fade = _FADE if len(self._latest) >= _NUM_FIRST else _FIRST_FADE
        self._fade *= fade ** min(1.0, plain_s / self.middle_s)


class StepTimes:
    """How long steps take, by the rows of their program, with drafts and without.

    Args:
        sizes: Rows of the programs, rising.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._plain: dict[int, RunningTime] = {}
        self._drafting: dict[int, RunningTime] = {}

    def measure(self, num_rows: int, duration_s: float, *, has_drafts: bool) -> None:
        """Learn from a step, or from one turn of several.

        Args:
            num_rows: Rows, those of draft tokens included.
            duration_s: Seconds, from the first decision to the last token told.
            has_drafts: Whether some rows were draft tokens.
        """
        size = self._size_of(num_rows)
        if size is None or duration_s <= 0:
            return
        times = self._drafting if has_drafts else self._plain
        if size in times:
            times[size].measure(duration_s)
        else:
            times[size] = RunningTime(duration_s)

    def in_plain_steps(self, num_rows: int, num_drafted: int, duration_s: float) -> float | None:
        """How many steps without drafts take as long as one with drafts did; None if unknown.

        What the machine did beside the step counts for no more than in the running means.
        """
        size, plain_size = self._size_of(num_rows + num_drafted), self._size_of(num_rows)
        if size is None or plain_size is None or plain_size not in self._plain:
            return None
        plain_s = self._plain[plain_size].middle_s
        known = self._drafting.get(size)
        expected_s = plain_s if known is None else max(plain_s, known.middle_s)
        return min(duration_s, _MAX_JUMP * expected_s) / plain_s

    def _size_of(self, num_rows: int) -> int | None:
        return next((size for size in self.sizes if size >= num_rows), None)

    def best_size(self, num_rows: int, chances: Sequence[tuple[float, int]]) -> int | None:
        """The program with the most tokens expected per second.

        Args:
            num_rows: Rows without their drafts.
            chances: For each draft token the chance that it counts, and its row; best first.

        Returns:
            Its rows, which draft tokens may fill; None when plain steps are better, or when how
            long they take isn't known yet.
        """
        sizes = [size for size in self.sizes if size >= num_rows]
        plain = self._plain.get(sizes[0])
        if plain is None:
            return None
        plain_s = plain.estimate_s
        best, best_rate = None, _ADVANTAGE * num_rows / plain_s
        expected, num_taken, drafting_rows = float(num_rows), 0, set[int]()
        smaller, slope = (sizes[0], plain_s), 0.0
        for size in sizes:
            for chance, row in chances[num_taken : size - num_rows]:
                expected += chance
                drafting_rows.add(row)
            num_taken = min(size - num_rows, len(chances))
            duration_s = self._drafting_s(size, plain_s, smaller, slope)
            is_bearable = len(drafting_rows) == num_rows or duration_s <= MAX_SLOWDOWN * plain_s
            if is_bearable and expected / duration_s > best_rate:
                best, best_rate = size, expected / duration_s
            if num_taken == len(chances):
                break
            if size > smaller[0]:
                # A larger program is never cheaper; one that was measured so was measured badly.
                slope = max(0.0, (duration_s - smaller[1]) / (size - smaller[0]))
            smaller = (size, duration_s)
        self._fade_others(sizes, best, plain_s)
        return best

    def _drafting_s(
        self, size: int, plain_s: float, smaller: tuple[int, float], slope: float
    ) -> float:
        """How long a step with drafts takes.

        What was never tried is thought to be cheap, so that it is tried, but not too cheap.

        Args:
            size: Rows of its program.
            plain_s: Of a step without drafts.
            smaller: Rows and time of the next smaller program.
            slope: Seconds a row, from the two next smaller ones.
        """
        known = self._drafting.get(size)
        if known is not None:
            return max(plain_s, known.estimate_s)
        alike = self._plain.get(size)
        num_smaller, smaller_s = smaller
        return max(
            smaller_s + _OPTIMISM * slope * (size - num_smaller),
            0.0 if alike is None else alike.estimate_s,
        )

    def _fade_others(self, sizes: Sequence[int], chosen: int | None, plain_s: float) -> None:
        for size in sizes:
            if size != chosen and size in self._drafting:
                self._drafting[size].fade(plain_s)
        if chosen is not None:
            self._plain[sizes[0]].fade(plain_s)


class Account:
    """What drafts have gained, in plain steps; they are allowed while `is_open`."""

    def __init__(self) -> None:
        self._credit = _FIRST_CREDIT

    @property
    def is_open(self) -> bool:
        """Whether drafts may lose a step."""
        return self._credit > 0

    def add_plain(self, num_steps: int) -> None:
        """Steps were taken without drafts."""
        if self._credit < _FIRST_CREDIT:
            self._credit = min(_FIRST_CREDIT, self._credit + _ALLOWED_LOSS * num_steps)

    def add_drafting(self, num_plain: float, tokens_a_row: float) -> None:
        """A step was taken with drafts.

        Args:
            num_plain: How many plain steps would have taken as long.
            tokens_a_row: What it made; a plain step makes 1.
        """
        credit = min(_MAX_CREDIT, self._credit + tokens_a_row - num_plain)
        self._credit = max(_MIN_CREDIT, credit)


class Speculation:
    """Gives the rows of a step their drafts, and learns what these cost and brought.

    Args:
        mode: Whether drafts are made where they pay, never, or always.
        decode_rows: Rows of the programs, rising.
        max_draft_tokens: The longest draft of a row.
    """

    def __init__(
        self,
        mode: SpeculationMode,
        decode_rows: Sequence[int],
        max_draft_tokens: int = MAX_DRAFT_TOKENS,
    ) -> None:
        self._mode = mode
        self._max_draft_tokens = max_draft_tokens
        self.times = StepTimes(decode_rows)
        self._account = Account()

    def measure(
        self, num_rows: int, num_drafted: int, num_right: int, num_turns: int, duration_s: float
    ) -> None:
        """Learn from a step of decodes.

        Args:
            num_rows: Rows without their drafts.
            num_drafted: Draft tokens of all rows.
            num_right: Of these the right ones.
            num_turns: Tokens that a row without a draft got at most.
            duration_s: Of the whole step.
        """
        if not num_drafted:
            self._account.add_plain(num_turns)
            self.times.measure(num_rows, duration_s / num_turns, has_drafts=False)
            return
        num_plain = self.times.in_plain_steps(num_rows, num_drafted, duration_s)
        if num_plain is not None:
            self._account.add_drafting(num_plain, 1 + num_right / num_rows)
        self.times.measure(num_rows + num_drafted, duration_s, has_drafts=True)

    def drafts(
        self, choices: Sequence[Choice], works: Sequence[RowWork] | None
    ) -> list[tuple[int, ...]] | None:
        """What each row drafts; None when no row is to.

        Args:
            choices: The rows of the step.
            works: What each computes; None where all are plain.
        """
        num_rows, largest = len(choices), self.times.sizes[-1]
        if (
            self._mode is SpeculationMode.OFF
            or num_rows >= largest
            or (works is not None and not all(work.is_decode for work in works))
        ):
            return None
        self._read(choices, works)
        chances: list[tuple[float, int]] = []
        for row, choice in enumerate(choices):
            most = min(self._max_draft_tokens, num_wanted(choice, self._max_draft_tokens) - 1)
            chances += [(chance, row) for chance in self._chances(choice, most)]
        if not chances:
            return None
        chances.sort(reverse=True)
        is_forced = self._mode is SpeculationMode.ALWAYS
        if not is_forced and not self._account.is_open:
            return None
        size = largest if is_forced else self.times.best_size(num_rows, chances)
        if size is None:
            return None
        lengths = [0] * num_rows
        for _, row in chances[: size - num_rows]:
            lengths[row] += 1
        return [
            choice.drafts.draft(length) if choice.drafts is not None and length else ()
            for choice, length in zip(choices, lengths, strict=True)
        ]

    def _chances(self, choice: Choice, num_tokens: int) -> list[float]:
        drafts = choice.drafts
        if drafts is None or drafts.num_read < choice.num_tokens:
            return []
        if self._mode is SpeculationMode.ALWAYS:
            return [1.0 / (1 + index) for index in range(len(drafts.draft(num_tokens)))]
        return drafts.chances(num_tokens)

    def _read(self, choices: Sequence[Choice], works: Sequence[RowWork] | None) -> None:
        """Look at new tokens; the end of a long prompt takes several steps, none of which waits."""
        num_left = _MAX_READ_TOKENS
        for index, choice in enumerate(choices):
            if choice.drafts is None:
                if not _may_draft(choice, None if works is None else works[index]):
                    continue
                choice.drafts = ChoiceDrafts(max(0, choice.num_tokens - 2 * WINDOW_TOKENS))
            start = choice.drafts.num_read
            token_ids = choice.token_ids(start, min(choice.num_tokens, start + num_left))
            choice.drafts.read(token_ids, choice.num_prompt_tokens)
            num_left -= len(token_ids)


def _may_draft(choice: Choice, work: RowWork | None) -> bool:
    """Whether the draw at each position depends on nothing but the logits there.

    Args:
        choice: Whose row it is.
        work: What it computes; None where it is plain.
    """
    return (
        choice.allowed_tokens is None
        and not choice.sampling.uses_penalties
        and (work is None or not work.needs_full_sampler)
    )
