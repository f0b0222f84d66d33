"""What `benchmarks.start` makes of what it measured."""

from benchmarks.start import Start, kv_bytes, memory_verdict, tables


def test_the_verdict_names_each_addend() -> None:
    met = memory_verdict(700, weights_mib=200, kv_mib=10)
    assert "weights 200 x 1.15 + used keys and values 10 + 500 = 740 MiB: met" in met
    assert "490 MiB" in met
    assert "missed" in memory_verdict(741, weights_mib=200, kv_mib=10)


def test_keys_and_values_of_one_request_are_counted_in_bfloat16() -> None:
    assert kv_bytes("SmolLM2-135M") == 144 * 30 * 3 * 64 * 2 * 2


def test_the_table_has_the_least_of_all_starts() -> None:
    slow = Start(9.0, {"penstock": 0.5, "gateway": 2.0}, [], {"gateway": 60}, {"gateway": 70})
    quick = Start(3.0, {"penstock": 0.6, "gateway": 1.5}, [], {"gateway": 50}, {"gateway": 55})
    text = tables([slow, quick])
    assert "ready after 9.0, 3.0 s, at best 3.00 s" in text
    assert "| gateway | 1.50 | 50 |" in text
    assert "| all | 2.10 | 50 |" in text
