"""Decides how many tokens the rows of a step compute before the host sees them; pure policy.

A step that computes several tokens for each row saves the work between steps, but whoever reads an
output as it comes gets it in gusts, and a choice that arrives or is aborted waits for the end of
the step. So no step takes longer than `STEP_TARGET_S`, nor than `STREAM_TARGET_S` where somebody
reads, by the duration of earlier steps.

Rows whose next token depends on what the host makes of the last one (a grammar, a bias, log
probabilities) get one token in such a step, while the others go on. So that they don't pay for the
others, a step with such a row takes at most `MAX_WAIT` times as long as if all had one token. That
is several tokens where the work between steps is what takes the time, and one where it isn't.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from engine_worker.core.choice.batch import MAX_ROW_STOP_TOKEN_IDS, RowWork
from engine_worker.core.choice.choice import Choice

STEP_TARGET_S: Final = 0.1
STREAM_TARGET_S: Final = 0.02
"""Fifty times a second a reader sees something new, which looks steady."""
MAX_WAIT: Final = 1.5
_WEIGHT: Final = 0.3
"""Of the newest duration in the running mean."""
TRY_AGAIN: Final = 256
"""After so many steps of one token it is tried again what a further one takes."""
_MIN_SHARE: Final = 0.02
"""Of a step that its further tokens take at least: a noisy measurement may say that it is none."""


@dataclass(slots=True)
class _Times:
    """Of the steps of one size, in seconds.

    Attributes:
        step_s: One token for each row.
        turn_s: Each further one; None until there was any.
        num_single: Steps of one token since there was a further one.
    """

    step_s: float
    turn_s: float | None = None
    num_single: int = 0

    def measure(self, num_turns: int, duration_s: float) -> None:
        """Learn from a step."""
        if num_turns == 1:
            self.step_s += _WEIGHT * (duration_s - self.step_s)
            self.num_single += 1
            return
        self.num_single = 0
        more_s = max(duration_s - self.step_s, _MIN_SHARE * duration_s)
        turn_s = more_s / (num_turns - 1)
        known_s = turn_s if self.turn_s is None else self.turn_s
        self.turn_s = known_s + _WEIGHT * (turn_s - known_s)
        # Where steps of one token have become rare, theirs is older: contexts grow.
        self.step_s = max(self.step_s, self.turn_s)


class Lookahead:
    """Remembers how long steps take, and gives rows their number of new tokens.

    Args:
        max_new_tokens: The most that the runner computes for a row in one step.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        # By the bits of the number of rows, as programs grow in powers of two, and by whether all
        # of them may look ahead.
        self._times: dict[tuple[int, bool], _Times] = {}
        self._planned: tuple[int, bool] | None = None

    def num_new_tokens(
        self, choices: Sequence[Choice], works: Sequence[RowWork]
    ) -> list[int] | None:
        """How many tokens each row may get, if its own limits allow it; None is one for all.

        Args:
            choices: The rows of the step.
            works: What each computes.
        """
        self._planned = None
        if self._max_new_tokens == 1 or not all(work.is_decode for work in works):
            return None
        may = [
            work.is_plain or _may_look_ahead(choice, work)
            for choice, work in zip(choices, works, strict=True)
        ]
        if not any(may):
            return None
        num = self._num_planned(choices, are_alike=all(may))
        return [num if each else 1 for each in may] if num > 1 else None

    def num_for_all(self, choices: Sequence[Choice]) -> int:
        """How many tokens each row of a step may get in which all are plain decodes.

        Args:
            choices: The rows of the step.
        """
        self._planned = None
        return 1 if self._max_new_tokens == 1 else self._num_planned(choices, are_alike=True)

    def _num_planned(self, choices: Sequence[Choice], *, are_alike: bool) -> int:
        self._planned = len(choices).bit_length(), are_alike
        is_read = any(choice.is_streaming for choice in choices)
        return self._num_within(self._planned, STREAM_TARGET_S if is_read else STEP_TARGET_S)

    def measure(self, num_turns: int, duration_s: float) -> None:
        """Learn from the step that was planned last, if it was one of decodes.

        Args:
            num_turns: The most tokens of a row.
            duration_s: Of the whole step.
        """
        planned, self._planned = self._planned, None
        if planned is None or duration_s <= 0:
            return
        if planned in self._times:
            self._times[planned].measure(num_turns, duration_s)
        else:
            self._times[planned] = _Times(duration_s / num_turns)

    def _num_within(self, key: tuple[int, bool], limit_s: float) -> int:
        """Tokens that a step can have in some time."""
        times, (_, are_alike) = self._times.get(key), key
        if times is None:
            return 1
        step_s, turn_s = times.step_s, times.turn_s
        if turn_s is None and not are_alike:
            return 2 if 2 * step_s <= limit_s else 1
        if not are_alike:
            limit_s = min(limit_s, MAX_WAIT * step_s)
        if step_s >= limit_s:
            return 1
        turn_s = step_s if turn_s is None else min(step_s, turn_s)
        num = min(self._max_new_tokens, 1 + int((limit_s - step_s) / turn_s))
        is_due = times.turn_s is not None and times.num_single >= TRY_AGAIN
        return 2 if num == 1 and is_due else num


def extended(choice: Choice, work: RowWork, num_new_tokens: int) -> RowWork:
    """A row that computes several tokens; its blocks must hold all but the last."""
    return structs.replace(
        work,
        max_new_tokens=num_new_tokens,
        stop_token_ids=choice.ending_token_ids,
    )


def num_wanted(choice: Choice, num_droppable: int = 0) -> int:
    """Tokens that a choice may still draw before it ends, pauses or has one forced upon it.

    Args:
        choice: One that runs.
        num_droppable: So many tokens of a step may turn out not to be wanted.
    """
    wanted = min(choice.max_output_tokens, choice.lease_tokens) - len(choice.output_token_ids)
    if choice.num_free_tokens is None:
        return wanted
    return min(wanted, choice.num_free_tokens + (num_droppable if choice.drops_rest else 0))


def _may_look_ahead(choice: Choice, work: RowWork) -> bool:
    return (
        # What may come next depends on what came: the host must see each token.
        choice.allowed_tokens is None
        and not work.needs_full_sampler
        and len(choice.ending_token_ids) <= MAX_ROW_STOP_TOKEN_IDS
    )
