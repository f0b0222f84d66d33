"""What the engine counts is what happened."""

from typing import Any

import pytest

from engine_worker.core.engine import Engine
from engine_worker.core.metrics import EngineMetrics
from protocol.wire.messages import Abort, BlockPlacement, Generate, Grammar, Load, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()


class SlowRunner(DeterministicFakeRunner):
    """Each step takes two seconds on the test's clock."""

    now = 100.0

    def run(self, batch: Any) -> Any:
        self.now += 2.0
        return super().run(batch)


class Harness:
    def __init__(self, **runner_options: Any) -> None:
        self.runner = SlowRunner(hashed_token(250), **runner_options)
        self.metrics = EngineMetrics(lambda: Load(num_running=3, num_free_blocks=6, num_blocks=8))
        self.engine = Engine(
            self.runner,
            TOKENIZER,
            vocab_size=258,
            max_model_len=100,
            metrics=self.metrics,
            clock=lambda: self.runner.now,
        )

    def add(self, request_id: str, num_tokens: int = 3, **changes: Any) -> None:
        options: dict[str, Any] = {
            "choice": 0,
            "attempt": 1,
            "prompt_token_ids": tuple(range(1, 12)),
            "sampling": SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True),
            "lease_tokens": 100,
            "deadline_s": 60.0,
            **changes,
        }
        self.engine.add("g", Generate(request_id=request_id, **options))

    def rest(self) -> None:
        while self.engine.has_work():
            self.engine.step()

    def values(self) -> dict[tuple[str, ...], float]:
        """Counters and gauges; of histograms sum and number of observations."""
        found: dict[tuple[str, ...], float] = {}
        for sample in self.metrics.registry.message().samples:
            key = (
                sample.name.removeprefix("penstock_engine_"),
                *(value for _, value in sample.labels),
            )
            found[key] = sample.value
            if sample.kind == "histogram":
                found[(*key, "count")] = sum(sample.counts)
        return found


def test_times_go_from_arrival_over_the_slot_and_the_first_token_to_the_end() -> None:
    harness = Harness(max_num_seqs=1)
    harness.add("first")
    harness.add("second")
    harness.rest()
    values = harness.values()
    # Prompts of 11 tokens take two steps of 8; the second waits for the four steps of the first
    # and finds two of its blocks.
    assert values["queue_seconds",] == 8.0
    assert values["prefill_seconds",] == 4.0 + 2.0
    assert values["time_to_first_token_seconds",] == 4.0 + 10.0
    assert values["decode_seconds",] == 2 * 4.0
    assert (
        values["inter_token_latency_seconds",],
        values["inter_token_latency_seconds", "count"],
    ) == (8.0, 4)
    assert values["step_seconds", "compute"] == 14.0
    assert values["step_seconds", "schedule", "count"] == values["steps", "done"] == 7


def test_tokens_and_ends_are_counted_by_kind() -> None:
    harness = Harness()
    harness.add("first")
    harness.rest()
    harness.add("second", num_tokens=50)
    harness.engine.step()
    harness.engine.abort("g", Abort(request_id="second", attempt=1))
    harness.add("refused", prompt_token_ids=())
    harness.rest()
    values = harness.values()
    kinds = {key[1]: value for key, value in values.items() if key[0] == "tokens"}
    assert kinds == {"prompt": 22, "cached": 8, "completion": 4}
    outcomes = {key[1]: value for key, value in values.items() if key[0] == "requests"}
    assert outcomes == {"length": 1, "abort": 1}


def test_a_failed_step_and_preemptions_are_counted() -> None:
    harness = Harness(fail_steps=frozenset({0}))
    harness.add("unlucky")
    harness.rest()
    values = harness.values()
    assert (values["steps", "failed"], values["requests", "failed"]) == (1, 1)

    harness = Harness(num_blocks=8)
    for name in "ab":
        harness.add(name, num_tokens=18, prompt_token_ids=tuple(name.encode()) * 11)
    harness.rest()
    assert harness.values()["preemptions",] == harness.engine.num_preemptions > 0


def test_what_an_earlier_attempt_had_sampled_is_not_counted_again() -> None:
    harness = Harness()
    harness.add("resumed", num_tokens=5, output_token_ids=(1, 2, 3))
    harness.rest()
    assert harness.values()["tokens", "completion"] == 2


def test_gauges_read_the_load() -> None:
    values = Harness().values()
    assert (values["running",], values["kv_blocks",]) == (3, 8)
    assert values["kv_use_ratio",] == pytest.approx(0.25)


def test_grammars_that_are_compiled_are_timed_once() -> None:
    harness = Harness()
    for name in ("first", "second"):
        sampling = SamplingParams(temperature=0.0)
        harness.add(name, grammar=Grammar(kind="regex", source="[ab]{3}"), sampling=sampling)
    harness.rest()
    harness.engine.grammars.close()
    assert harness.values()["grammar_seconds", "count"] == 1
    # Two outputs of three drawn tokens; the end needs none.
    assert harness.values()["mask_seconds", "count"] == 6


def test_nothing_is_kept_of_requests_that_are_gone() -> None:
    harness = Harness()
    harness.add("ended")
    harness.rest()
    harness.add("forgotten")
    harness.engine.forget_gateway("g")
    assert not harness.metrics._times


def test_an_engine_says_which_backend_computes_its_blocks_and_in_which_types() -> None:
    metrics = EngineMetrics()
    places = (BlockPlacement("attention", "cpu_native"), BlockPlacement("head", "xla", "why"))
    metrics.on_loaded(places, weights="int8", keys_and_values="bfloat16")
    found = {
        (sample.name, *(value for _, value in sample.labels))
        for sample in metrics.registry.message().samples
        if sample.name.endswith("_info")
    }
    assert found == {
        ("penstock_engine_blocks_info", "attention", "cpu_native"),
        ("penstock_engine_blocks_info", "head", "xla"),
        ("penstock_engine_types_info", "weights", "int8"),
        ("penstock_engine_types_info", "kv", "bfloat16"),
    }
