"""Scores labels after prompts: a choice computes what questions share, packs of them follow it."""

import logging
import math
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from engine_worker.core.choice.batch import ModelRunner
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice.score_pack import (
    ScoredTexts,
    ScoreLimits,
    ScorePack,
    fits,
    packs_of,
)
from engine_worker.core.choice_log import about
from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.scheduling.scheduler import Scheduler
from engine_worker.core.tombstones import ChoiceKey
from engine_worker.errors import InvalidRequestError, RequestError
from engine_worker.text.score_preparation import ScorePrompt
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Failure,
    Finished,
    FinishReason,
    Generate,
    SamplingParams,
    Score,
    Scored,
)

MAX_OPEN_GROUPS: Final = 4
"""Prompts of one request that are computed at a time; the others wait, so that a request with
hundreds of long questions doesn't fill the engine."""

_BROKEN = "The engine failed to score this request."

_log = logging.getLogger("penstock.engine")


@dataclass(slots=True)
class ScoreGroup:
    """Questions that follow one prompt.

    Attributes:
        prompt_token_ids: What they share.
        questions: What is scored after it; each fits a pack.
    """

    prompt_token_ids: tuple[int, ...]
    questions: tuple[ScoredTexts, ...]

    @property
    def num_most_tokens(self) -> int:
        """Of the prompt and the longest row that follows it."""
        num_row_tokens = max(
            len(texts.token_ids) + max(map(len, texts.labels)) - 1 for texts in self.questions
        )
        return len(self.prompt_token_ids) + num_row_tokens


@dataclass(slots=True)
class ScoreTask:
    """One Score, tokenised and cut into groups; made in any thread.

    Attributes:
        received_at: When it came, on the engine's clock.
        groups: The first one computes what the others find cached.
        num_tokens: What is computed in all.
        question_tokens: Tokens of each question.
        sums: By label, the log probabilities so far.
        num_scored_tokens: Of questions and labels, in the packs that are done.
        num_first_tokens: Of the first group's prompt, once that has ended.
    """

    gateway_id: str
    command: Score
    received_at: float
    groups: deque[ScoreGroup]
    num_tokens: int
    question_tokens: tuple[int, ...]
    sums: list[float]
    num_cached_tokens: int | None = None
    num_scored_tokens: int = 0
    num_first_tokens: int = 0

    @property
    def num_held_tokens(self) -> int:
        """The longest prompt that its choices hold in the cache."""
        return max(len(group.prompt_token_ids) for group in self.groups)

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is."""
        return (self.gateway_id, self.command.request_id)


@dataclass(slots=True)
class _OpenGroup:
    """A group whose prompt is being computed, or is there.

    Attributes:
        packs: Those that are still to be scored.
        pack: The next one; None when all are.
    """

    task: ScoreTask
    output: ChoiceOutput
    packs: Iterator[ScorePack]
    pack: ScorePack | None


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
        prompts = cached = 0
        if task.num_cached_tokens is not None:  # the first group has ended
            prompts = cached = task.num_cached_tokens
            prompts += task.num_first_tokens - cached
        for key in self._open_keys(task):
            choice = self._open[key].output.choice
            found = choice.num_cached_tokens or 0
            if task.num_cached_tokens is None and not cached:
                cached = min(found, choice.num_computed_tokens)
                prompts += choice.num_computed_tokens
            else:
                prompts += max(0, choice.num_computed_tokens - found)
        num_tokens = min(task.num_tokens, prompts + task.num_scored_tokens)
        return num_tokens, min(cached, num_tokens)

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
        if task.num_cached_tokens is None:  # of the first group, which all others find cached
            task.num_cached_tokens = choice.num_cached_tokens or 0
            task.num_first_tokens = choice.num_computed_tokens
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
            self._open[output.choice.key] = _OpenGroup(task, output, packs, pack)

    def _open_keys(self, task: ScoreTask) -> list[ChoiceKey]:
        return [key for key in self._open if key[:2] == task.key]

    def _refuse(
        self, task: ScoreTask, code: ErrorCode, message: str, param: str | None = None
    ) -> None:
        self._drop(task)
        request_id = task.command.request_id
        self._answer(
            task.gateway_id,
            Failure(request_id=request_id, code=code, message=message, param=param),
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


def score_task(
    gateway_id: str,
    command: Score,
    prompt: ScorePrompt,
    limits: ScoreLimits,
    received_at: float,
) -> ScoreTask:
    """What is to be computed for a Score.

    A question that is longer than a pack gets a prompt of its own, whose beginning is cached.

    Raises:
        InvalidRequestError: A label is longer than any pack.
    """
    short: list[ScoredTexts] = []
    groups: deque[ScoreGroup] = deque()
    for texts in prompt.questions:
        longest = max(map(len, texts.labels))
        if longest > limits.max_label_tokens:
            raise InvalidRequestError(
                f"A label has {longest} tokens of this model; labels of at most"
                f" {limits.max_label_tokens} tokens can be scored."
            )
        if all(fits(len(texts.token_ids), label, limits) for label in texts.labels):
            short.append(texts)
        else:
            *most, last = texts.token_ids
            rest = ScoredTexts((last,), texts.labels, texts.first)
            groups.append(ScoreGroup((*prompt.head, *most), (rest,)))
    if short:
        groups.appendleft(ScoreGroup(prompt.head, tuple(short)))
    return ScoreTask(
        gateway_id,
        command,
        received_at,
        groups,
        prompt.num_tokens,
        tuple(len(texts.token_ids) for texts in prompt.questions),
        [0.0] * prompt.num_labels,
    )


def prompt_command(task: ScoreTask, group: ScoreGroup, number: int) -> Generate:
    """A group's prompt as the choice that computes it; its one token is drawn for nobody."""
    command = task.command
    return Generate(
        request_id=command.request_id,
        choice=number,
        attempt=1,
        prompt_token_ids=group.prompt_token_ids,
        sampling=SamplingParams(temperature=0.0, max_tokens=1),
        lease_tokens=1,
        deadline_s=command.deadline_s,
        priority=command.priority,
        tenant=command.tenant,
        is_streaming=False,
        trace_id=command.trace_id,
    )
