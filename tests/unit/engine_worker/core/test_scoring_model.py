"""Scores, choices and commands of the same names in any order: each has its one end, and a right
one."""

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_worker.core.choice.score_pack import ScoredTexts
from protocol.errors import ErrorCode
from protocol.wire.messages import Abort, Extend, Failure, SamplingParams, Scored
from tests.unit.engine_worker.core.test_engine import generate
from tests.unit.engine_worker.core.test_scoring import Harness, expected, logprobs

NAN_TOKEN = 9
"""Prompts that begin with it compute no number."""
_names = st.sampled_from(["a", "b"])
_beginnings = st.builds(
    lambda first, length: (first, *(5,) * length),
    st.sampled_from([1, 1, 2, NAN_TOKEN]),
    st.integers(0, 12),
)
_labels = st.lists(
    st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3
)
_texts = st.tuples(
    st.builds(
        lambda first, length: (first, *(6,) * length),
        st.sampled_from([3, 3, 4, 666]),
        st.sampled_from([0, 1, 2, 14, 17, 20, 30]),
    ),
    _labels,
    st.sampled_from([(), (), (7,), (7, 8, 9)]),
    st.sampled_from([1, 1, 1, 5]),
)
"""A question, its labels, what its kind begins with, and how often it is asked."""
_events = st.one_of(
    st.tuples(st.just("score"), _names, _beginnings, st.lists(_texts, min_size=1, max_size=5)),
    st.tuples(st.just("generate"), _names, _beginnings, st.integers(1, 6)),
    st.tuples(st.sampled_from(["abort", "cancel"]), _names, st.sampled_from([-1, 0, -2])),
    st.tuples(st.just("extend"), _names, st.sampled_from([0, -2])),
    st.tuples(st.just("step"), st.integers(1, 6)),
)


class ScoringModel(Harness):
    """What was asked, to be compared with what is told."""

    def __init__(self, **runner_options: Any) -> None:
        super().__init__(nan_prompts=frozenset({NAN_TOKEN}), **runner_options)
        self.asked: list[tuple[str, tuple[int, ...], tuple[ScoredTexts, ...]]] = []
        self.cancelled: Counter[str] = Counter()
        self.generated: list[tuple[str, int]] = []

    def score(self, name: str, head: tuple[int, ...], texts: list[Any]) -> None:
        if ("g", name) in self.engine._scoring._tasks:
            return  # it would be the same one
        questions, first = [], 0
        for token_ids, labels, beginning, num_times in texts:
            for _ in range(num_times):
                questions.append(ScoredTexts(token_ids, tuple(labels), first, beginning))
                first += len(labels)
        self.asked.append((name, head, tuple(questions)))
        self.engine.score(self.task(name, tuple(questions), head=head))

    def generate(self, name: str, prompt: tuple[int, ...], max_tokens: int) -> None:
        attempt = 1 + len(self.generated)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        command = generate(name, attempt=attempt, prompt_token_ids=prompt, sampling=sampling)
        self.engine.add("g", command)
        self.generated.append((name, attempt))

    def abort(self, name: str, choice: int) -> None:
        attempt = len(self.generated)  # what comes later has a higher one
        self.engine.abort("g", Abort(request_id=name, choice=choice, attempt=attempt))

    def cancel(self, name: str, _choice: int) -> None:
        self.cancelled[name] += ("g", name) in self.engine._scoring._tasks
        self.engine.cancel_score("g", name)

    def extend(self, name: str, choice: int) -> None:
        command = Extend(request_id=name, choice=choice, attempt=1, lease_tokens=2000)
        self.engine.extend("g", command)

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def check(self) -> None:
        assert Counter((end.request_id, end.attempt) for end in self.ends) == Counter(
            self.generated
        )
        for name in ("a", "b"):
            answers = [one for one in self.answers if one.request_id == name]
            asked = [one for one in self.asked if one[0] == name]
            for answer, (_, head, questions) in zip(answers, asked, strict=True):
                self.check_answer(name, answer, head, questions)
        assert not any(self.cancelled.values())
        assert self.engine.num_unfinished == 0
        load = self.engine.load()
        assert load.num_free_blocks == load.num_blocks

    def check_answer(
        self,
        name: str,
        answer: Scored | Failure,
        head: tuple[int, ...],
        questions: tuple[ScoredTexts, ...],
    ) -> None:
        longest = max(
            len(one.beginning) + len(one.token_ids) + max(map(len, one.labels)) - 1
            for one in questions
        )
        if isinstance(answer, Scored):
            if answer.logprobs:
                assert logprobs(answer) == expected(questions, head)
            else:
                self.cancelled[name] -= 1
        elif answer.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED:
            assert len(head) + longest > self.engine.max_score_len
        elif answer.code is ErrorCode.INVALID_REQUEST:
            # Of a long question, whose own prompt is taken last.
            assert any(666 in one.token_ids for one in questions)
        else:
            assert answer.code is ErrorCode.INTERNAL_ERROR
            assert "(NaN)" in answer.message
            assert head[0] == NAN_TOKEN or any(666 in one.token_ids for one in questions)


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
@given(
    st.lists(_events, min_size=1, max_size=14),
    st.integers(5, 24),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 4),
)
def test_whatever_comes_in_whatever_order_has_one_end_and_holds_nobody_up(
    events: list[tuple[Any, ...]],
    num_blocks: int,
    max_num_seqs: int,
    is_wide: bool,
    least_of_a_kind: int,
) -> None:
    harness = ScoringModel(
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=64 if is_wide else 8,
        prefill_chunk_size=32 if is_wide else 5,
        least_of_a_kind=least_of_a_kind,
    )
    for name, *arguments in events:
        getattr(harness, "steps" if name == "step" else name)(*arguments)
    harness.run(max_steps=4000)
    harness.check()
