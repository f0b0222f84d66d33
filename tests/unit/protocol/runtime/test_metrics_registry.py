"""What a worker counts becomes one message of samples."""

import pytest

from protocol.runtime.metrics import MetricRegistry


def test_a_counter_has_one_series_for_each_combination_of_labels() -> None:
    registry = MetricRegistry()
    tokens = registry.counter("penstock_engine_tokens", "Tokens.", ("kind",))
    tokens.add(3, "prompt")
    tokens.add(1, "completion")
    tokens.add(2, "prompt")
    samples = {sample.labels: sample.value for sample in registry.message().samples}
    assert samples == {(("kind", "prompt"),): 5.0, (("kind", "completion"),): 1.0}


def test_a_counter_without_labels_is_there_before_it_counts() -> None:
    registry = MetricRegistry()
    registry.counter("penstock_engine_steps", "Steps.")
    (sample,) = registry.message().samples
    assert (sample.name, sample.kind, sample.value) == ("penstock_engine_steps", "counter", 0.0)


def test_a_gauge_is_read_when_samples_are_taken() -> None:
    registry, state = MetricRegistry(), [1]
    registry.gauge("penstock_engine_running", "Running.", lambda: state[0])
    state[0] = 7
    assert registry.message().samples[0].value == 7.0


def test_a_histogram_counts_a_value_at_a_bound_below_it() -> None:
    registry = MetricRegistry()
    seconds = registry.histogram("penstock_engine_step_seconds", "Steps.", bounds=(0.1, 1))
    seconds.observe(0.1)
    seconds.observe(0.5, times=2)
    seconds.observe(30)
    (sample,) = registry.message().samples
    assert sample.bounds == (0.1, 1.0)
    assert sample.counts == (1, 2, 1)
    assert sample.value == pytest.approx(31.1)


@pytest.mark.parametrize("name", ["penstock_twice", "without_prefix"])
def test_a_name_is_unique_and_has_the_prefix(name: str) -> None:
    registry = MetricRegistry()
    registry.counter("penstock_twice", "First.")
    with pytest.raises(ValueError, match=name):
        registry.counter(name, "Second.")


def test_a_series_with_a_wrong_number_of_label_values_is_refused() -> None:
    registry = MetricRegistry()
    registry.counter("penstock_x", "X.", ("kind",)).add(1, "a", "b")
    with pytest.raises(ValueError, match="argument"):
        registry.message()


def test_what_a_worker_is_stands_in_labels_and_replaces_what_it_was() -> None:
    registry = MetricRegistry()
    blocks = registry.info("penstock_engine_blocks_info", "Blocks.", ("block", "backend"))
    assert registry.message().samples == ()
    blocks.show([("head", "xla")])
    blocks.show([("head", "cpu_native"), ("mlp", "xla")])
    samples = {sample.labels: sample.value for sample in registry.message().samples}
    assert samples == {
        (("block", "head"), ("backend", "cpu_native")): 1.0,
        (("block", "mlp"), ("backend", "xla")): 1.0,
    }
