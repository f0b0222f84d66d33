"""Scores within an engine: beside streams, over preemptions, and each answered exactly once."""

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from engine_worker.core.choice.cache_group import CacheGroup
from engine_worker.core.choice.score_pack import ScoredTexts, ScoreLimits, ScoreShape
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.core.score_task import ScoreTask, score_task
from engine_worker.core.scoring import MAX_OPEN_GROUPS
from engine_worker.errors import InvalidRequestError
from engine_worker.text.score_preparation import ScorePrompt
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Abort,
    Extend,
    Failure,
    Finished,
    SamplingParams,
    Score,
    Scored,
    ScoredQuestion,
)
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token, scored_logprob
from tests.unit.engine_worker.core.test_engine import TOKENIZER, VOCAB_SIZE, Clock, generate

HEAD = tuple(range(40, 53))
QUESTIONS = (
    ScoredTexts((7, 8, 9), ((1,), (2, 3)), 0),
    ScoredTexts((7, 8, 10), ((1,), (2, 3)), 2),
    ScoredTexts(tuple(range(60, 83)), ((4,), (5,)), 4),
)


def expected(
    questions: tuple[ScoredTexts, ...] = QUESTIONS, head: tuple[int, ...] = HEAD
) -> list[float]:
    found = []
    for texts in questions:
        for label in texts.labels:
            before = [*head, *texts.beginning, *texts.token_ids]
            scores = []
            for token_id in label:
                scores.append(scored_logprob(before, token_id))
                before.append(token_id)
            found.append(sum(scores))
    return found


class Harness:
    """An engine on a fake runner, and what it told one gateway."""

    def __init__(self, **runner_options: Any) -> None:
        self.clock = Clock()
        self.runner = DeterministicFakeRunner(hashed_token(VOCAB_SIZE), **runner_options)
        self.engine = Engine(
            self.runner, TOKENIZER, vocab_size=VOCAB_SIZE, max_model_len=200, clock=self.clock
        )
        self.answers: list[Any] = []
        self.ends: list[Finished | Failure] = []

    def task(
        self,
        request_id: str = "s",
        questions: tuple[ScoredTexts, ...] = QUESTIONS,
        *,
        head: tuple[int, ...] = HEAD,
        is_checked: bool = True,
    ) -> ScoreTask:
        command = Score(
            request_id=request_id,
            deadline_s=60.0,
            messages_json="[]",
            questions=(ScoredQuestion(text=""),),
            label_sets=(("A",),),
        )
        num_labels = sum(len(texts.labels) for texts in questions)
        prompt = ScorePrompt(head, questions, num_labels)
        limits = self.engine.score_limits
        if not is_checked:
            limits = ScoreLimits((ScoreShape(1, 99),), max_pairs=99, max_places=(99,))
        return score_task("g", command, prompt, limits, self.clock())

    def step(self) -> None:
        output = self.engine.step().get("g", GatewayOutput())
        self.answers += output.answers
        self.ends += output.ends

    def run(self, max_steps: int = 500) -> None:
        for _ in range(max_steps):
            if not self.engine.has_work():
                break
            self.step()
        else:
            raise AssertionError("the engine has work for ever")


def logprobs(answer: Scored) -> list[float]:
    values = array("f")
    values.frombytes(answer.logprobs)
    return values.tolist()


def test_every_label_is_scored_after_the_beginning_and_its_question() -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    harness.run()
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected())
    assert answer.num_prompt_tokens == 13 + 3 + 3 + 23
    assert answer.num_tokens == (3, 3, 23)
    assert harness.ends == []
    assert harness.engine.num_unfinished == 0


def test_the_beginning_is_computed_once_and_later_found_in_the_cache() -> None:
    harness = Harness()
    harness.engine.score(harness.task("first"))
    harness.run()
    num_first = sum(len(row.token_ids) for batch in harness.runner.batches for row in batch.rows)
    # The long question's own prompt shares three blocks of four with the others'.
    assert num_first == 13 + (13 + 22 - 12)
    harness.engine.score(harness.task("second"))
    harness.run()
    first, second = harness.answers
    assert logprobs(first) == logprobs(second)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)


def test_what_other_prompts_of_a_score_found_of_its_first_one_was_not_cached_before() -> None:
    """The prompt of the long question ends first, and has found the first one's blocks."""
    many = tuple(ScoredTexts((7, number), ((1,),), number) for number in range(60))
    long = ScoredTexts(tuple(range(60, 83)), ((4,),), 60)
    harness = Harness()
    harness.engine.score(harness.task("s", (*many, long)))
    harness.run()
    (answer,) = harness.answers
    assert answer.num_cached_tokens == 0


def test_streams_go_on_beside_it_and_packs_of_several_scores_take_turns() -> None:
    harness = Harness()
    many = tuple(ScoredTexts((7, number), ((1,), (2,)), 2 * number) for number in range(40))
    harness.engine.add("g", generate(prompt_token_ids=(5, 6), lease_tokens=20))
    harness.engine.score(harness.task("long", many))
    harness.engine.score(harness.task("short"))
    harness.run(max_steps=60)
    assert [answer.request_id for answer in harness.answers] == ["short", "long"]
    assert logprobs(harness.answers[1]) == pytest.approx(expected(many))


def test_a_score_that_is_preempted_starts_its_prompt_again_and_loses_nothing() -> None:
    harness = Harness(num_blocks=12, max_num_seqs=2)
    many = tuple(ScoredTexts((7, number), ((1,), (2,)), 2 * number) for number in range(300))
    endless = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=42)
    harness.engine.add("g", generate("r", prompt_token_ids=(5, 6), sampling=endless))
    harness.engine.score(harness.task("s", many))
    harness.run()
    assert harness.engine.num_preemptions > 0
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected(many))


@pytest.mark.parametrize(
    "groups",
    [
        (CacheGroup(12, reach=6),),
        (CacheGroup(64), CacheGroup(12, reach=6)),
        # One window of 6 tokens, and a prompt's chunk of 8 or a question of 16 behind it.
        (CacheGroup(64), CacheGroup(8, reach=6)),
    ],
)
def test_a_beginning_whose_early_blocks_were_freed_is_scored_from_its_window(
    groups: tuple[CacheGroup, ...],
) -> None:
    harness = Harness(groups=groups)
    harness.engine.add("g", generate(prompt_token_ids=(5, 6), lease_tokens=20))
    harness.engine.score(harness.task())
    harness.run()
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected())
    load = harness.engine.load()
    assert load.num_free_blocks >= load.num_blocks // 2  # of a stream that waits for its lease


@pytest.mark.parametrize("num_tokens", range(26, 36))
def test_a_score_that_leaves_the_cache_no_block_for_its_question_is_refused_before_it_runs(
    num_tokens: int,
) -> None:
    harness = Harness(num_blocks=12, max_num_seqs=1)
    assert (harness.engine.max_model_len, harness.engine.max_score_len) == (48, 44)
    question = ScoredTexts(tuple(range(60, 60 + num_tokens)), ((4,), (5, 6)), 0)
    harness.engine.score(harness.task("long", (question,)))
    harness.engine.score(harness.task("short"))
    harness.run(max_steps=60)
    short, long = sorted(harness.answers, key=lambda answer: answer.request_id == "long")
    assert logprobs(short) == pytest.approx(expected())
    # The last token of a label is in no row.
    if len(HEAD) + num_tokens + 1 > 44:
        assert isinstance(long, Failure)
        assert long.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert "at most 44 tokens" in long.message
    else:
        assert logprobs(long) == pytest.approx(expected((question,)))


def test_a_score_that_no_block_can_be_had_for_ends_instead_of_keeping_its_slot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = Harness(num_blocks=12, max_num_seqs=1)
    harness.runner.num_scratch_blocks = lambda num_stored, num_tokens: 100  # type: ignore[method-assign]
    harness.engine.score(harness.task("stuck", QUESTIONS[:1]))
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=5)
    harness.engine.add("g", generate("next", prompt_token_ids=(5, 6), sampling=sampling))
    harness.run(max_steps=30)
    (failure,) = harness.answers
    assert (failure.request_id, failure.code) == ("stuck", ErrorCode.INTERNAL_ERROR)
    assert "no room in its KV cache" in failure.message
    assert [type(end) for end in harness.ends] == [Finished]
    assert "can't get on" in caplog.text


def test_many_long_questions_hold_few_slots_at_a_time() -> None:
    harness = Harness(num_blocks=200, max_num_seqs=4)
    long = tuple(ScoredTexts((number, *range(60, 80)), ((1,),), number) for number in range(1, 30))
    long = tuple(ScoredTexts(one.token_ids, one.labels, at) for at, one in enumerate(long))
    harness.engine.score(harness.task("s", long))
    assert harness.engine.num_unfinished == MAX_OPEN_GROUPS
    harness.run()
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected(long))


def test_a_cancelled_score_says_what_was_computed() -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    harness.step()
    harness.engine.cancel_score("g", "s")
    harness.engine.cancel_score("g", "unknown")
    harness.engine.abort("g", Abort(request_id="unknown", attempt=1))
    harness.run()
    (told,) = harness.answers
    assert (told.request_id, told.logprobs, harness.ends) == ("s", b"", [])
    num_computed = sum(len(row.token_ids) for batch in harness.runner.batches for row in batch.rows)
    assert told.num_prompt_tokens == num_computed > 0
    assert harness.engine.num_unfinished == 0


@pytest.mark.parametrize("num_steps", range(9))
def test_what_a_cancelled_score_has_computed_grows_to_the_whole(num_steps: int) -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    for _ in range(num_steps):
        harness.step()
    if harness.answers:
        return  # it was done by then
    harness.engine.cancel_score("g", "s")
    harness.run()
    (told,) = harness.answers
    num_prompts = sum(len(row.token_ids) for batch in harness.runner.batches for row in batch.rows)
    assert min(num_prompts, 42) <= told.num_prompt_tokens <= 42
    assert 0 <= told.num_cached_tokens <= told.num_prompt_tokens


def test_a_gateway_that_is_gone_leaves_nothing_behind() -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    harness.step()
    harness.engine.forget_gateway("g")
    harness.run()
    assert (harness.answers, harness.engine.num_unfinished) == ([], 0)
    # A gateway of the same name begins anew.
    harness.engine.score(harness.task())
    harness.run()
    assert len(harness.answers) == 1


def test_no_number_fails_the_score_and_nothing_else() -> None:
    harness = Harness()
    harness.engine.score(harness.task("bad", (ScoredTexts((666,), ((1,),), 0),)))
    harness.engine.score(harness.task("good"))
    harness.run()
    failure = next(one for one in harness.answers if isinstance(one, Failure))
    assert (failure.request_id, failure.code) == ("bad", ErrorCode.INTERNAL_ERROR)
    assert [one.request_id for one in harness.answers if isinstance(one, Scored)] == ["good"]


def test_prompts_of_one_score_that_give_no_number_in_one_step_cost_nobody_else_anything() -> None:
    # No block is shared, so that neither prompt waits for the other one's.
    harness = Harness(
        block_size=16,
        max_num_batched_tokens=128,
        prefill_chunk_size=64,
        nan_prompts=frozenset({HEAD[0]}),
    )
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=12)
    harness.engine.add("g", generate("stream", prompt_token_ids=(5, 6), sampling=sampling))
    harness.step()
    questions = tuple(ScoredTexts((at, *range(60, 80)), ((1,),), at) for at in range(3))
    harness.engine.score(harness.task("bad", questions))
    harness.run()
    assert max(len(batch.rows) for batch in harness.runner.batches) == 1 + len(questions)
    (failure,) = harness.answers
    assert (failure.request_id, failure.code) == ("bad", ErrorCode.INTERNAL_ERROR)
    assert [type(end) for end in harness.ends] == [Finished]
    assert harness.runner.num_resets == 0
    assert harness.engine.num_unfinished == 0


def test_a_call_that_raises_fails_its_score_as_a_lost_worker_would() -> None:
    harness = Harness(fail_packs=frozenset({1}))
    harness.engine.score(harness.task("bad"))
    harness.run()
    (failure,) = harness.answers
    assert (failure.request_id, failure.code) == ("bad", ErrorCode.WORKER_LOST)
    harness.engine.score(harness.task("good"))
    harness.run()
    assert isinstance(harness.answers[-1], Scored)


def test_an_engine_that_can_not_start_over_after_a_score_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It went on with a runner without a cache until the next step failed as well."""
    harness = Harness(fail_packs=frozenset({1}))
    harness.engine.score(harness.task("bad"))

    def lost() -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(harness.runner, "reset", lost)
    with pytest.raises(RuntimeError, match="no device"):
        harness.run()


def test_a_bug_in_scoring_ends_the_score_and_nothing_else() -> None:
    harness = Harness()
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=12)
    harness.engine.add("g", generate("stream", prompt_token_ids=(5, 6), sampling=sampling))
    # A label that fits no pack; `score_task` refuses it, but anybody may make a task.
    task = harness.task("broken", (ScoredTexts((7,), (tuple(range(1, 40)),), 0),), is_checked=False)
    harness.engine.score(task)
    num_blocks, harness.runner.num_scratch_blocks = harness.runner.num_scratch_blocks, _broken  # type: ignore[method-assign]
    harness.engine.score(harness.task("raising"))
    harness.engine.score(harness.task("too"))
    for _ in range(4):
        harness.step()
    harness.runner.num_scratch_blocks = num_blocks  # type: ignore[method-assign]
    harness.engine.score(harness.task("good"))
    harness.run()
    assert [(one.request_id, getattr(one, "code", None)) for one in harness.answers] == [
        ("broken", ErrorCode.INTERNAL_ERROR),
        ("raising", ErrorCode.INTERNAL_ERROR),
        ("too", ErrorCode.INTERNAL_ERROR),
        ("good", None),
    ]
    assert [type(end) for end in harness.ends] == [Finished]
    assert harness.engine.num_unfinished == 0
    assert harness.engine.load().num_free_blocks == 64


def _broken(num_stored: int, num_tokens: int) -> int:
    raise ZeroDivisionError


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_a_score_whose_prompt_ends_in_any_way_is_answered(num_steps: int) -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    for _ in range(num_steps):
        harness.step()
    prompt = next(iter(harness.engine._choices))
    harness.engine._progress.finish(prompt, "abort")
    harness.run()
    (failure,) = harness.answers
    assert (failure.request_id, failure.code) == ("s", ErrorCode.INTERNAL_ERROR)
    assert harness.engine.num_unfinished == 0
    harness.engine.score(harness.task())
    harness.run()
    assert logprobs(harness.answers[1]) == pytest.approx(expected())


def test_a_label_that_is_longer_than_a_pack_is_refused() -> None:
    limits = Harness().engine.score_limits
    assert limits.max_label_tokens == 4
    with pytest.raises(InvalidRequestError, match="5 tokens of this model; labels of at most 4"):
        Harness().task("s", (ScoredTexts((7,), ((1,), (1, 2, 3, 4, 5)), 0),))
    harness = Harness()
    longest = (ScoredTexts(tuple(range(60, 83)), ((1, 2, 3, 4),), 0),)
    harness.engine.score(harness.task("s", longest))
    harness.run()
    assert logprobs(harness.answers[0]) == pytest.approx(expected(longest))


_SAMPLING = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=12)
_COMMANDS: dict[str, Callable[[Engine], None]] = {
    "a choice": lambda engine: engine.add("g", generate("s", sampling=_SAMPLING)),
    "no choice": lambda engine: engine.add("g", generate("s", choice=-2)),
    "an abort": lambda engine: engine.abort("g", Abort(request_id="s", attempt=1)),
    "no abort": lambda engine: engine.abort("g", Abort(request_id="s", attempt=1, choice=-2)),
    "no lease": lambda engine: engine.extend(
        "g", Extend(request_id="s", choice=-2, attempt=1, lease_tokens=0)
    ),
}


@pytest.mark.parametrize("num_steps", [0, 1, 3, 100])
@pytest.mark.parametrize("name", _COMMANDS)
def test_commands_of_the_same_name_leave_a_score_alone_and_it_them(
    name: str, num_steps: int
) -> None:
    harness = Harness()
    harness.engine.score(harness.task("s"))
    for _ in range(num_steps):
        harness.step()
    _COMMANDS[name](harness.engine)
    harness.run()
    (answer,) = harness.answers
    assert logprobs(answer) == pytest.approx(expected())
    ends = {"a choice": [Finished], "no choice": [Failure]}
    assert [type(end) for end in harness.ends] == ends.get(name, [])
    # And the other way round.
    harness.engine.score(harness.task("s"))
    harness.run()
    assert logprobs(harness.answers[1]) == pytest.approx(expected())


def test_a_step_that_raises_fails_the_score_whose_prompt_was_in_it() -> None:
    harness = Harness(fail_steps=frozenset({0, 1}))
    harness.engine.score(harness.task())
    harness.run()
    assert harness.answers[0].code is ErrorCode.WORKER_LOST
    assert harness.engine.num_unfinished == 0


def test_the_deadline_ends_a_score() -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    harness.clock.now += 61
    harness.run()
    (failure,) = harness.answers
    assert failure.code is ErrorCode.DEADLINE_EXCEEDED
    assert failure.usage is None
    assert harness.engine.num_unfinished == 0


@pytest.mark.parametrize("num_steps", range(1, 5))
def test_a_score_whose_deadline_ends_at_work_says_what_was_computed(num_steps: int) -> None:
    """As much as when its client leaves at that moment."""
    told = []
    for ends_by in ("deadline", "cancel"):
        harness = Harness()
        harness.engine.score(harness.task())
        for _ in range(num_steps):
            harness.step()
        assert harness.answers == []
        if ends_by == "cancel":
            harness.engine.cancel_score("g", "s")
        else:
            harness.clock.now += 61
        harness.run()
        told += harness.answers
        assert harness.engine.num_unfinished == 0
    failure, scored = told
    assert failure.code is ErrorCode.DEADLINE_EXCEEDED
    assert failure.usage.prompt_tokens == scored.num_prompt_tokens > 0
    assert failure.usage.cached_tokens == scored.num_cached_tokens


def test_the_same_score_a_second_time_changes_nothing() -> None:
    harness = Harness()
    harness.engine.score(harness.task())
    harness.engine.score(harness.task())
    harness.run()
    assert len(harness.answers) == 1
