"""Scores labels after prompts: a choice computes what questions share, packs of them follow it."""

import logging
import math
import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from engine_worker.core.choice.batch import ModelRunner
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice.score_pack import ScorePack, packs_of
from engine_worker.core.choice_log import about
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.scheduling.scheduler import Scheduler
from engine_worker.core.score_task import ScoreTask, prompt_command
from engine_worker.core.tombstones import ChoiceKey
from engine_worker.errors import RequestError
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Failure,
    Finished,
    FinishReason,
    Generate,
    Scored,
    Usage,
)

MAX_OPEN_GROUPS: Final = 4
"""Prompts of one request that are computed at a time; the others wait, so that a request with
hundreds of long questions doesn't fill the engine."""

_BROKEN = "The engine failed to score this request."
_EXPIRED = "The request's time ran out before all of its questions were answered."

_log = logging.getLogger("penstock.engine")


@dataclass(slots=True)
class _OpenGroup:
    """A group whose prompt is being computed, or is there.

    Attributes:
        is_first: Whether it is the first one of its Score.
        packs: Those that are still to be scored.
        pack: The next one; None when all are.
    """

    task: ScoreTask
    output: ChoiceOutput
    is_first: bool
    packs: Iterator[ScorePack]
    pack: ScorePack | None

    @property
    def num_prompt_tokens(self) -> int:
        """Of its prompt, what was computed for it, and for the first one also what was cached."""
        choice = self.output.choice
        num_found = 0 if self.is_first else choice.num_cached_tokens or 0
        return max(0, choice.num_computed_tokens - num_found)


class Scoring:
    """The Scores that an engine works on; owned by its thread.

    A group's prompt is a choice like any other until it is computed; then it keeps its slot and its
    blocks while its packs are scored, one in each step. Whatever ends that choice ends the Score.

    Args:
        runner: Scores packs.
        scheduler: Lends blocks for a moment.
        take: Puts the choice of a prompt where it is scheduled.
        finish: Ends it well.
        fail: Ends it badly.
        answer: Takes what a gateway is to be told.
        reset: Starts over with an empty cache, after a call that raised.
        max_len: The longest prompt and row together that the cache has room for, tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        *,
        take: Callable[[Generate, float, str], ChoiceOutput],
        finish: Callable[[ChoiceOutput, FinishReason], None],
        fail: Callable[[ChoiceOutput, ErrorCode, str], None],
        answer: Callable[[str, Scored | Failure], None],
        reset: Callable[[], None],
        max_len: int,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._reset = reset
        self._has_lost_cache = False
        self._max_len = max_len
        self._take = take
        self._finish = finish
        self._fail = fail
        self._answer = answer
        self._tasks: dict[tuple[str, str], ScoreTask] = {}
        self._open: OrderedDict[ChoiceKey, _OpenGroup] = OrderedDict()
        self._num_opened: dict[tuple[str, str], int] = {}

    @property
    def num_unfinished(self) -> int:
        """Scores that have no answer yet."""
        return len(self._tasks)

    def add(self, task: ScoreTask) -> None:
        """Begin with a Score; one that is here already goes on."""
        if task.key in self._tasks:
            return
        self._tasks[task.key] = task
        self._num_opened[task.key] = 0
        try:
            self._begin(task)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever is wrong with one Score, others go on
            self._fail_broken(task)

    def _begin(self, task: ScoreTask) -> None:
        num_tokens = max(group.num_most_tokens for group in task.groups)
        if num_tokens > self._max_len:
            message = (
                f"The KV cache has room for scores of at most {self._max_len} tokens, but the"
                f" request has {num_tokens} tokens with its longest question and label."
            )
            self._refuse(task, ErrorCode.CONTEXT_LENGTH_EXCEEDED, message)
        else:
            self._open_groups(task)

    def cancel(self, gateway_id: str, request_id: str) -> None:
        """Nobody waits any more for the answer, but for what was computed; unknown ones are fine.

        That is told as a `Scored` without probabilities.
        """
        task = self._tasks.get((gateway_id, request_id))
        if task is not None:
            num_prompt_tokens, num_cached_tokens = self._computed(task)
            self._drop(task)
            told = Scored(
                request_id=request_id,
                logprobs=b"",
                num_prompt_tokens=num_prompt_tokens,
                num_cached_tokens=num_cached_tokens,
            )
            self._answer(gateway_id, told)

    def _computed(self, task: ScoreTask) -> tuple[int, int]:
        """How many tokens of a Score were computed, and how many of these were cached before.

        Labels count among what was scored, but never more than the whole is charged with.
        """
        num_tokens, num_cached = task.num_prompt_tokens, task.num_cached_tokens
        for key in self._open_keys(task):
            group = self._open[key]
            num_tokens += group.num_prompt_tokens
            if group.is_first:
                num_cached = min(
                    group.output.choice.num_cached_tokens or 0, group.num_prompt_tokens
                )
        num_tokens = min(task.num_tokens, num_tokens + task.num_scored_tokens)
        return num_tokens, min(num_cached, num_tokens)

    def end_expired(self, now: float) -> None:
        """End the Scores whose deadline has come, with what was computed of each until then."""
        for task in [task for task in self._tasks.values() if task.deadline <= now]:
            num_tokens, num_cached = self._computed(task)
            usage = Usage(prompt_tokens=num_tokens, cached_tokens=num_cached)
            self._refuse(
                task,
                ErrorCode.DEADLINE_EXCEEDED,
                _EXPIRED,
                usage=usage if num_tokens else None,
            )

    def forget_gateway(self, gateway_id: str) -> None:
        """Drop what a gateway wanted that is gone; the engine forgets the choices."""
        for key in [key for key in self._tasks if key[0] == gateway_id]:
            del self._tasks[key], self._num_opened[key]
        for choice_key in [key for key in self._open if key[0] == gateway_id]:
            del self._open[choice_key]

    def on_ended(self, choice: Choice, end: Finished | Failure) -> None:
        """The choice of a prompt has ended; unless that was done here, so does its Score."""
        group = self._open.pop(choice.key, None)
        if group is None or group.task.key not in self._tasks:
            return
        if isinstance(end, Failure):
            self._refuse(group.task, end.code, end.message, end.param)
        else:
            self._refuse(group.task, ErrorCode.INTERNAL_ERROR, _BROKEN)

    def step(self) -> bool:
        """Score one pack of whoever waited longest of those that have room; whether one has."""
        for key, group in list(self._open.items()):
            choice = group.output.choice
            is_ready = choice.slot is not None and choice.num_uncomputed_tokens == 0
            if is_ready and self._try_to_score(group):
                if key in self._open:
                    self._open.move_to_end(key)
                return True
        return False

    def _try_to_score(self, group: _OpenGroup) -> bool:
        """`_score`, in which a bug ends this Score and nothing else.

        Raises:
            Exception: The runner could not be reset after a call that raised; as of `Engine.step`.
        """
        has_scored = self._scored(group)
        if self._has_lost_cache:
            self._has_lost_cache = False
            self._reset()
        return has_scored

    def _scored(self, group: _OpenGroup) -> bool:
        try:
            return self._score(group)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - as in `add`
            self._fail_broken(group.task)
            return True

    def _score(self, group: _OpenGroup) -> bool:
        """Score as many rows of a group's pack as blocks are free for; whether there were any."""
        choice, pack = group.output.choice, group.pack
        assert pack is not None, "a group ends with its last pack"
        needed = [
            self._runner.num_scratch_blocks(choice.num_computed_tokens, len(row))
            for row in pack.rows
        ]
        borrowed = self._scheduler.borrow(choice, needed[0], sum(needed))
        if not borrowed:
            return False  # whoever runs before it gets on, and then there is room
        ends = list(accumulate(needed, initial=0))
        num_rows = sum(end <= len(borrowed[0]) for end in ends[1:])
        scratch_ids = [
            [lent[ends[row] : ends[row + 1]] for row in range(num_rows)] for lent in borrowed
        ]
        pack, group.pack = pack.first_rows(num_rows)
        try:
            self._compute(group, pack, scratch_ids)
        finally:
            self._scheduler.give_back(borrowed)
        return True

    def _compute(
        self, group: _OpenGroup, pack: ScorePack, scratch_ids: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        choice = group.output.choice
        assert choice.slot is not None, "a prompt keeps its slot until it is scored"
        try:
            tables = self._scheduler.tables(choice)
            scores = self._runner.score(
                pack, choice.num_computed_tokens, choice.slot, tables, scratch_ids
            ).tolist()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - whatever the compute side raises, others go on
            _log.exception("%d rows could not be scored", len(pack.rows))
            self._has_lost_cache = True
            message = "The engine failed at a step of this request."
            self._fail(group.output, ErrorCode.WORKER_LOST, message)
            return
        if not all(map(math.isfinite, scores)):
            message = "The model computed no number (NaN)."
            self._fail(group.output, ErrorCode.INTERNAL_ERROR, message)
            return
        sums = group.task.sums
        group.task.num_scored_tokens += sum(map(len, pack.rows))
        for pair, score in zip(pack.pairs, scores, strict=True):
            sums[pair.label] += score
        if group.pack is None:
            group.pack = next(group.packs, None)
        if group.pack is None:
            self._end_group(group)

    def _end_group(self, group: _OpenGroup) -> None:
        task, choice = group.task, group.output.choice
        task.num_prompt_tokens += group.num_prompt_tokens
        if group.is_first:
            task.num_cached_tokens = choice.num_cached_tokens or 0
        del self._open[choice.key]
        self._finish(group.output, "stop")
        self._open_groups(task)
        is_here = task.key in self._tasks
        if is_here and not task.groups and not self._open_keys(task):
            del self._tasks[task.key], self._num_opened[task.key]
            self._answer(
                task.gateway_id,
                Scored(
                    request_id=task.command.request_id,
                    logprobs=_little_endian(task.sums),
                    num_prompt_tokens=task.num_tokens,
                    num_cached_tokens=min(task.num_cached_tokens, task.num_tokens),
                    num_tokens=task.question_tokens,
                ),
            )

    def _open_groups(self, task: ScoreTask) -> None:
        """Begin with as many groups as one Score may have under way."""
        while task.groups and len(self._open_keys(task)) < MAX_OPEN_GROUPS:
            group = task.groups.popleft()
            number = self._num_opened[task.key]
            self._num_opened[task.key] += 1
            command = prompt_command(task, group, number)
            # Before the prompt is taken: nobody would release it if a pack can't be made.
            packs = packs_of(group.questions, self._runner.score_limits)
            pack = next(packs)
            try:
                output = self._take(command, task.received_at, task.gateway_id)
            except RequestError as error:
                self._refuse(task, error.code, error.message, error.param)
                return
            self._open[output.choice.key] = _OpenGroup(task, output, number == 0, packs, pack)

    def _open_keys(self, task: ScoreTask) -> list[ChoiceKey]:
        return [key for key in self._open if key[:2] == task.key]

    def _refuse(
        self,
        task: ScoreTask,
        code: ErrorCode,
        message: str,
        param: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        self._drop(task)
        request_id = task.command.request_id
        self._answer(
            task.gateway_id,
            Failure(request_id=request_id, code=code, message=message, param=param, usage=usage),
        )

    def _fail_broken(self, task: ScoreTask) -> None:
        """End a Score at a bug of ours, within its `except`."""
        with about(task.command):
            _log.exception("a score could not be computed")
        if task.key in self._tasks:
            self._refuse(task, ErrorCode.INTERNAL_ERROR, _BROKEN)

    def _drop(self, task: ScoreTask) -> None:
        del self._tasks[task.key], self._num_opened[task.key]
        task.groups.clear()
        for key in self._open_keys(task):
            self._finish(self._open.pop(key).output, "abort")


def _little_endian(numbers: Sequence[float]) -> bytes:
    values = array("f", numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
