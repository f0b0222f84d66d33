"""Decides how many tokens the rows of a step compute before the host sees them; pure policy.

A step that computes several tokens for each row saves the work between steps, but whoever reads an
output as it comes would get it in gusts, and a choice that arrives or is aborted waits for the end
of the step. So only steps whose rows all may, look ahead, and none takes longer than
`STEP_TARGET_S`, by the duration of earlier steps.
"""

from collections.abc import Sequence
from dataclasses import replace

from engine_worker.core.choice.batch import MAX_ROW_STOP_TOKEN_IDS, RowWork
from engine_worker.core.choice.choice import Choice

STEP_TARGET_S = 0.1
_WEIGHT = 0.3
"""Of the newest duration in the running mean."""


class Lookahead:
    """Remembers how long a token takes, and gives rows their number of new tokens.

    Args:
        max_new_tokens: The most that the runner computes for a row in one step.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        # By the bits of the number of rows: programs grow in powers of two.
        self._turn_s: dict[int, float] = {}

    def num_new_tokens(self, choices: Sequence[Choice], works: Sequence[RowWork]) -> int:
        """How many tokens each row may get, if its own limits allow it.

        Args:
            choices: The rows of the step.
            works: What each computes.
        """
        if self._max_new_tokens == 1 or not works:
            return 1
        if not all(map(_may_look_ahead, choices, works)):
            return 1
        turn_s = self._turn_s.get(len(works).bit_length())
        if turn_s is None:
            return 1
        return max(1, min(self._max_new_tokens, int(STEP_TARGET_S / turn_s)))

    def measure(self, num_rows: int, num_turns: int, duration_s: float) -> None:
        """Learn from a step of decodes that computed up to `num_turns` tokens for each row."""
        if duration_s <= 0:
            return
        key, turn_s = num_rows.bit_length(), duration_s / num_turns
        known = self._turn_s.get(key, turn_s)
        self._turn_s[key] = known + _WEIGHT * (turn_s - known)


def extended(choice: Choice, work: RowWork, num_new_tokens: int) -> RowWork:
    """A row that computes several tokens; its blocks must hold all but the last."""
    return replace(
        work,
        max_new_tokens=num_new_tokens,
        stop_token_ids=tuple(sorted(choice.eos_token_ids | choice.stop_token_ids)),
    )


def num_wanted(choice: Choice) -> int:
    """Tokens that a choice may still draw before it ends, pauses or has one forced upon it."""
    wanted = min(choice.max_output_tokens, choice.lease_tokens) - choice.num_output_tokens
    return wanted if choice.num_free_tokens is None else min(wanted, choice.num_free_tokens)


def _may_look_ahead(choice: Choice, work: RowWork) -> bool:
    return (
        not choice.is_streaming
        # What may come next depends on what came: the host must see each token.
        and choice.allowed_tokens is None
        and work.sample
        and len(work.token_ids) == 1
        and not work.needs_full_sampler
        and len(choice.eos_token_ids | choice.stop_token_ids) <= MAX_ROW_STOP_TOKEN_IDS
    )
