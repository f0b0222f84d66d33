"""What is to be computed for a Score: its questions, by the prompts that they follow."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine_worker.core.choice.score_pack import ScoredTexts, ScoreLimits, fits
from engine_worker.errors import InvalidRequestError
from engine_worker.text.score_preparation import ScorePrompt
from protocol.wire.messages import Generate, SamplingParams, Score


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
        groups: The first one computes what the others find cached, up to where they part.
        num_tokens: What is computed in all.
        question_tokens: Tokens of each question.
        sums: By label, the log probabilities so far.
        num_cached_tokens: Of the first group's prompt, once that has ended.
        num_scored_tokens: Of questions and labels, in the packs that are done.
        num_prompt_tokens: Of the prompts of groups that have ended, without what any but the first
            found cached.
    """

    gateway_id: str
    command: Score
    received_at: float
    groups: deque[ScoreGroup]
    num_tokens: int
    question_tokens: tuple[int, ...]
    sums: list[float]
    num_cached_tokens: int = 0
    num_scored_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def num_held_tokens(self) -> int:
        """The longest prompt that its choices hold in the cache."""
        return max(len(group.prompt_token_ids) for group in self.groups)

    @property
    def deadline(self) -> float:
        """When nobody waits for it any more, on the engine's clock."""
        return self.received_at + self.command.deadline_s

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is."""
        return (self.gateway_id, self.command.request_id)


def score_task(
    gateway_id: str,
    command: Score,
    prompt: ScorePrompt,
    limits: ScoreLimits,
    received_at: float,
) -> ScoreTask:
    """What is to be computed for a Score.

    Questions of a kind that has enough of them follow a prompt of its own, which goes on from what
    all share; others have what their kind begins with in their rows. One that is longer than a pack
    gets a prompt of its own, whose beginning is cached.

    Raises:
        InvalidRequestError: A label is longer than any pack.
    """
    groups: deque[ScoreGroup] = deque()
    for head, questions in _by_prompt(prompt, limits):
        short: list[ScoredTexts] = []
        for texts in questions:
            _check_labels(texts, limits)
            if _is_short(texts, limits):
                short.append(texts)
            else:
                *most, last = texts.token_ids
                rest = ScoredTexts((last,), texts.labels, texts.first)
                groups.append(ScoreGroup((*head, *most), (rest,)))
        if short:
            groups.appendleft(ScoreGroup(head, tuple(short)))
    return ScoreTask(
        gateway_id,
        command,
        received_at,
        groups,
        prompt.num_tokens,
        tuple(len(texts.token_ids) for texts in prompt.questions),
        [0.0] * prompt.num_labels,
    )


def _by_prompt(
    prompt: ScorePrompt, limits: ScoreLimits
) -> Iterator[tuple[tuple[int, ...], list[ScoredTexts]]]:
    """The questions, with what is computed once for some of them: the head, or a kind behind it."""
    kinds: dict[tuple[int, ...], list[ScoredTexts]] = {}
    for texts in prompt.questions:
        kinds.setdefault(texts.beginning, []).append(texts)
    # One kind alone is no further prompt.
    least = limits.least_of_a_kind if len(kinds) > 1 else 1
    joined: list[ScoredTexts] = []
    for beginning, questions in kinds.items():
        # What fits a pack by itself and no longer with its beginning would need a prompt anyway.
        if beginning and (
            len(questions) >= least
            or any(_is_short(one, limits) > _is_short(one.joined(), limits) for one in questions)
        ):
            yield (*prompt.head, *beginning), [replace(one, beginning=()) for one in questions]
        else:
            joined += (texts.joined() for texts in questions)
    if joined:
        yield prompt.head, joined


def _is_short(texts: ScoredTexts, limits: ScoreLimits) -> bool:
    """Whether a question fits packs with each of its labels."""
    return all(fits(len(texts.token_ids), label, limits) for label in texts.labels)


def _check_labels(texts: ScoredTexts, limits: ScoreLimits) -> None:
    longest = max(map(len, texts.labels))
    if longest > limits.max_label_tokens:
        raise InvalidRequestError(
            f"A label has {longest} tokens of this model; labels of at most"
            f" {limits.max_label_tokens} tokens can be scored."
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
