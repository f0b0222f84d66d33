"""Draft tokens: the same outputs in fewer steps, used where they pay by what was measured."""

from typing import Any

import pytest

from engine_worker.core.choice.batch import StepBatch, StepResult
from engine_worker.core.decoding.speculation import MAX_DRAFT_TOKENS, SpeculationMode, StepTimes
from engine_worker.core.engine import Engine
from engine_worker.core.engine_output import GatewayOutput
from engine_worker.core.metrics import EngineMetrics
from protocol.wire.messages import Abort, Extend, Finished, Generate, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, NextToken, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = TOKENIZER.num_tokens
PROMPT = tuple(b"hi")
LETTERS = hashed_token(26)
SONG = b"the song goes round and round; "
ALWAYS, AUTO, OFF = SpeculationMode.ALWAYS, SpeculationMode.AUTO, SpeculationMode.OFF


def letters(token_ids: Any) -> int:
    """A model without any habit."""
    return 97 + LETTERS(token_ids)


def song(token_ids: Any) -> int:
    """A model that sings the same song again and again."""
    return SONG[len(token_ids) % len(SONG)]


def song_with_mistakes(token_ids: Any) -> int:
    """As `song`, but every tenth token or so is another."""
    return letters(token_ids) if LETTERS(token_ids) < 3 else song(token_ids)


def two_letters(token_ids: Any) -> int:
    """A model whose drafts are right half of the time."""
    return 97 + LETTERS(token_ids) % 2


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(DeterministicFakeRunner):
    """A step takes as long as its program, by the rows of it."""

    def __init__(
        self, next_token: NextToken, clock: Clock, step_s: dict[int, float], **options: Any
    ) -> None:
        super().__init__(next_token, decode_rows=tuple(step_s), **options)
        self._clock = clock
        self._step_s = step_s

    def run(self, batch: StepBatch) -> StepResult:
        result = super().run(batch)
        num_rows = sum(1 + len(row.draft_token_ids) for row in batch.rows)
        num_turns = 1 + max(
            (
                len(more)
                for index, more in result.more_token_ids.items()
                if not batch.rows[index].draft_token_ids
            ),
            default=0,
        )
        size = min(size for size in self._step_s if size >= num_rows)
        self._clock.now += num_turns * self._step_s[size]
        return result

    def drafts(self) -> list[int]:
        """Draft tokens by step."""
        return [sum(len(row.draft_token_ids) for row in batch.rows) for batch in self.batches]


CHEAP = {1: 0.010, 2: 0.0102, 4: 0.011, 8: 0.012, 16: 0.015}
DEAR = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080, 16: 0.160}


class Harness:
    def __init__(
        self,
        next_token: NextToken,
        mode: SpeculationMode,
        step_s: dict[int, float] | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.runner = TimedRunner(
            next_token, self.clock, step_s or CHEAP, **{"num_blocks": 200, **options}
        )
        self.metrics = EngineMetrics()
        self.engine = Engine(
            self.runner,
            TOKENIZER,
            vocab_size=VOCAB_SIZE,
            max_model_len=2000 if "num_blocks" not in options else 200,
            speculation=mode,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.told = GatewayOutput()

    def add(self, request_id: str = "r", *, max_tokens: int = 100, **changes: Any) -> None:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, **changes.pop("sampling", {})
        )
        options: dict[str, Any] = {
            "choice": 0,
            "attempt": 1,
            "prompt_token_ids": PROMPT,
            "lease_tokens": 10_000,
            "deadline_s": 1e6,
            "want_token_ids": True,
            **changes,
        }
        self.engine.add("g", Generate(request_id=request_id, sampling=sampling, **options))

    def step(self) -> None:
        output = self.engine.step().get("g", GatewayOutput())
        self.told.deltas.extend(output.deltas)
        self.told.ends.extend(output.ends)

    def rest(self) -> "Harness":
        for _ in range(5000):
            if not self.engine.has_work():
                return self
            self.step()
        raise AssertionError("the engine doesn't come to rest")

    def outcome(self) -> dict[str, Any]:
        """Texts, token ids, their ends and the ends, by request, however the deltas were cut."""
        found: dict[str, Any] = {}
        for delta in self.told.deltas:
            text, token_ids, ends = found.get(delta.request_id, ("", (), ()))
            found[delta.request_id] = (
                text + delta.text,
                token_ids + delta.token_ids,
                ends + delta.token_ends,
            )
        return {"outputs": found, "ends": {end.request_id: end for end in self.told.ends}}

    def counted(self) -> dict[str, float]:
        return {
            sample.labels[0][1]: sample.value
            for sample in self.metrics.registry.message().samples
            if sample.name == "penstock_engine_draft_tokens"
        }

    def all_blocks_are_back(self) -> bool:
        load = self.engine.load()
        return load.num_free_blocks == load.num_blocks


MIXED: list[dict[str, Any]] = [
    {},
    {"max_tokens": 17, "is_streaming": False},
    {"sampling": {"stop": ("round an",)}},
    {"sampling": {"stop_token_ids": (ord(";"),)}},
    {"prompt_token_ids": SONG * 2},
]


@pytest.mark.parametrize("next_token", [song, song_with_mistakes, two_letters, letters])
@pytest.mark.parametrize("mode", [ALWAYS, AUTO])
def test_outputs_are_the_same_with_drafts_and_without(
    next_token: NextToken, mode: SpeculationMode
) -> None:
    found = []
    for each in (OFF, mode):
        harness = Harness(next_token, each, max_num_seqs=3)
        for index, changes in enumerate(MIXED):
            harness.add(str(index), **changes)
        found.append(harness.rest().outcome())
        assert harness.all_blocks_are_back()
        counted = harness.counted()
        if each is OFF:
            assert counted == {}
        elif next_token in (song, song_with_mistakes):
            assert 0 < counted["accepted"] <= counted["drafted"]
    assert found[0] == found[1]


def test_what_repeats_takes_fewer_steps_and_each_tells_one_delta() -> None:
    harness = Harness(song, AUTO)
    harness.add(max_tokens=300)
    harness.rest()
    # The song is heard once before it can be drafted.
    assert len(harness.runner.batches) < len(SONG) + 10 + (300 - len(SONG)) / 8
    assert max(harness.runner.drafts()) == MAX_DRAFT_TOKENS
    assert len(harness.told.deltas) <= len(harness.runner.batches)


def test_the_prompt_is_drafted_from_as_well() -> None:
    harness = Harness(song, AUTO)
    harness.add(prompt_token_ids=SONG * 2, max_tokens=60)
    harness.rest()
    assert len(harness.runner.batches) < 25


def test_text_without_habits_costs_nothing() -> None:
    for step_s in (CHEAP, DEAR):
        drafting, plain = Harness(letters, AUTO, step_s), Harness(letters, OFF, step_s)
        for harness in (drafting, plain):
            harness.add(max_tokens=400)
            harness.rest()
        assert drafting.clock.now - 100 < 1.02 * (plain.clock.now - 100)


def test_steps_that_cost_too_much_are_hardly_tried() -> None:
    # Twice the rows, twice the time: not even right drafts pay.
    drafting, plain = Harness(song, AUTO, DEAR), Harness(song, OFF, DEAR)
    started = []
    for harness in (drafting, plain):
        harness.add(max_tokens=400)
        harness.rest()
        started.append(harness.clock.now)
        harness.add("again", max_tokens=600)
        harness.rest()
    # Each size must be looked at now and then, and the largest takes as long as sixteen plain
    # steps.
    assert drafting.counted()["drafted"] > 0
    assert drafting.clock.now - started[0] < 1.1 * (plain.clock.now - started[1])


def test_drafts_stop_when_they_are_wrong_and_come_back_when_the_text_repeats() -> None:
    def phases(token_ids: Any) -> int:
        return (letters if 200 <= len(token_ids) < 400 else song)(token_ids)

    harness = Harness(phases, AUTO, {1: 0.010, 2: 0.013, 4: 0.014, 8: 0.016, 16: 0.020})
    harness.add(max_tokens=600)
    harness.rest()
    by_start: dict[int, int] = {}
    for batch in harness.runner.batches:
        for row in batch.rows:
            by_start[row.start] = len(row.draft_token_ids)
    num_drafted = [
        sum(num for start, num in by_start.items() if first <= start < first + 100)
        for first in range(0, 600, 100)
    ]
    assert num_drafted[1] > 70
    assert num_drafted[3] < 15
    assert num_drafted[5] > 70


def test_a_program_that_became_faster_is_found_out() -> None:
    harness = Harness(song, AUTO, dict(DEAR))
    harness.add(max_tokens=800)
    while harness.clock.now < 102:
        harness.step()
    harness.runner._step_s.update(CHEAP)
    before = harness.counted()["accepted"]
    harness.rest()
    assert harness.counted()["accepted"] - before > 200


def test_a_row_without_drafts_is_not_held_up_much_by_the_others() -> None:
    # A program of eight rows makes more tokens, but the neighbours would wait twice as long.
    step_s = {1: 0.010, 2: 0.010, 4: 0.010, 8: 0.020}
    harness = Harness(song, AUTO, step_s, max_num_seqs=4)
    harness.add("singer", max_tokens=150)
    for index in range(3):
        harness.add(str(index), max_tokens=150, sampling={"presence_penalty": 0.5})
    harness.rest()
    drafts = harness.runner.drafts()
    assert sum(num > 0 for num in drafts) < 5
    # Alone it may do as it likes.
    alone = Harness(song, AUTO, step_s, max_num_seqs=4)
    alone.add("singer", max_tokens=150)
    alone.rest()
    assert max(alone.runner.drafts()) == 7


def test_rows_that_may_not_draft_ride_along() -> None:
    harness = Harness(song, ALWAYS, max_num_seqs=4)
    harness.add("singer")
    harness.add("penalties", sampling={"frequency_penalty": 0.5})
    harness.add("scores", sampling={"logprobs": 2})
    harness.add("min", sampling={"min_tokens": 5})
    harness.rest()
    drafted = {
        row.slot for batch in harness.runner.batches for row in batch.rows if row.draft_token_ids
    }
    together = [
        b
        for b in harness.runner.batches
        if len(b.rows) == 4 and any(r.draft_token_ids for r in b.rows)
    ]
    assert len(drafted) == 1
    assert together
    outputs = harness.outcome()["outputs"]
    assert len({token_ids for _, token_ids, _ in outputs.values()}) == 1


def test_no_draft_goes_beyond_the_lease_the_length_or_the_program() -> None:
    harness = Harness(song, ALWAYS)
    harness.add(max_tokens=100, lease_tokens=61, prompt_token_ids=SONG * 2)
    harness.rest()
    assert len(harness.outcome()["outputs"]["r"][1]) == 61
    harness.engine.extend("g", Extend(request_id="r", choice=0, attempt=1, lease_tokens=200))
    harness.rest()
    (end,) = harness.told.ends
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.usage.completion_tokens) == ("length", 100)
    for batch in harness.runner.batches:
        for row in batch.rows:
            end_position = row.start + len(row.token_ids) + len(row.draft_token_ids)
            assert end_position <= len(SONG) * 2 + 100


def test_nobody_is_preempted_for_drafts_and_preempted_ones_go_on_as_before() -> None:
    found = []
    for mode in (OFF, ALWAYS):
        harness = Harness(song_with_mistakes, mode, num_blocks=24, block_size=4, max_num_seqs=3)
        for name in "abc":
            harness.add(name, max_tokens=60, prompt_token_ids=(*PROMPT, *name.encode()))
        harness.rest()
        assert harness.engine.num_preemptions > 0
        assert harness.all_blocks_are_back()
        found.append(harness.outcome())
    assert found[0] == found[1]
    roomy = Harness(song, ALWAYS, num_blocks=34, block_size=4)
    for name in "ab":
        roomy.add(name, max_tokens=60)
    roomy.rest()
    assert roomy.engine.num_preemptions == 0
    assert roomy.counted()["accepted"] > 0


def test_the_prefix_cache_holds_no_draft() -> None:
    harness = Harness(two_letters, ALWAYS)
    harness.add("first", max_tokens=80)
    harness.rest()
    counted = harness.counted()
    assert counted["accepted"] < counted["drafted"]
    (_, answer, _) = harness.outcome()["outputs"]["first"]
    # Whoever goes on from the answer finds its blocks, and in them what was said.
    harness.add("second", prompt_token_ids=(*PROMPT, *answer), max_tokens=40)
    harness.rest()
    plain = Harness(two_letters, OFF)
    plain.add("second", prompt_token_ids=(*PROMPT, *answer), max_tokens=40)
    plain.rest()
    second = harness.outcome()
    assert second["outputs"]["second"] == plain.outcome()["outputs"]["second"]
    assert second["ends"]["second"].usage.cached_tokens >= 76


def test_an_abort_and_a_deadline_end_a_request_that_drafts() -> None:
    harness = Harness(song, ALWAYS)
    harness.add("a", prompt_token_ids=SONG * 2, max_tokens=500)
    harness.add("b", prompt_token_ids=SONG * 2, max_tokens=500, deadline_s=0.3)
    while not any(harness.runner.drafts()):
        harness.step()
    harness.engine.abort("g", Abort(request_id="a", choice=0, attempt=1))
    harness.rest()
    ends = harness.outcome()["ends"]
    assert ends["a"].finish_reason == "abort"
    assert ends["b"].code == "deadline_exceeded"
    assert harness.all_blocks_are_back()


def test_a_resumed_output_is_drafted_from_too() -> None:
    whole = Harness(song, OFF)
    whole.add(max_tokens=120)
    (_, tokens, _) = whole.rest().outcome()["outputs"]["r"]
    harness = Harness(song, AUTO)
    harness.add(max_tokens=120, output_token_ids=tokens[:80])
    (_, rest, _) = harness.rest().outcome()["outputs"]["r"]
    assert rest == tokens[80:]
    assert len(harness.runner.batches) < 30


def test_a_long_prompt_is_read_over_several_steps() -> None:
    harness = Harness(
        song, ALWAYS, max_num_batched_tokens=512, prefill_chunk_size=512, block_size=32
    )
    harness.add(prompt_token_ids=SONG * 62, max_tokens=60)
    harness.add("other", prompt_token_ids=SONG[::-1] * 62, max_tokens=60)
    while not any(harness.runner.drafts()):
        harness.step()
    assert harness.runner.batches[-1].rows[0].start >= len(SONG) * 62
    harness.rest()
    assert harness.counted()["accepted"] > 20


def test_sizes_without_room_are_never_asked() -> None:
    times = StepTimes((2, 4))
    assert times.best_size(1, [(0.9, 0)]) is None
    times.measure(1, 0.01, has_drafts=False)
    assert times.best_size(1, [(0.9, 0)]) == 2
    assert times.best_size(1, [(0.9, 0), (0.8, 0), (0.7, 0)]) == 4
    # Not worth five hundredths.
    assert times.best_size(1, [(0.04, 0)]) is None
    times.measure(5, 0.01, has_drafts=True)
    times.measure(2, 0.0, has_drafts=True)


@pytest.mark.parametrize("slow_s", [0.03, 0.1, 5.0])
def test_a_small_program_that_was_slower_than_a_large_one_breaks_no_step(slow_s: float) -> None:
    """A busy machine measures so; what was never tried was then thought to take no time at all."""
    times = StepTimes((2, 4, 8, 16))
    times.measure(2, 0.01, has_drafts=False)
    times.measure(2, slow_s, has_drafts=True)
    times.measure(4, 0.02, has_drafts=True)
    assert times.best_size(1, [(0.9, 0)] * 15) in (4, 8, 16)


def test_one_step_that_was_disturbed_does_not_end_drafting_for_long() -> None:
    chances = [(0.9, 0), (0.8, 0), (0.7, 0)]
    times = StepTimes((1, 4))
    times.measure(1, 0.01, has_drafts=False)
    times.measure(4, 0.05, has_drafts=True)
    # The first time may be that of a cold program, so it is tried again soon.
    pause = next(index for index in range(5000) if times.best_size(1, chances))
    assert 3 < pause < 15
    for _ in range(10):
        times.measure(4, 0.015, has_drafts=True)
    times.measure(4, 5.0, has_drafts=True)
    assert times.best_size(1, chances) == 4
    # What is slow again and again is believed, and then tried rarely.
    for _ in range(20):
        times.measure(4, 0.05, has_drafts=True)
    pause = next(index for index in range(5000) if times.best_size(1, chances))
    assert 300 < pause < 3000
