"""The accelerator's benchmark runs on any machine in its tiny form."""

import pytest

from benchmarks import gpu
from engine_worker.compute.runner import buckets


@pytest.mark.long
def test_the_tiny_run_prints_parity_bandwidth_and_a_row_for_each_concurrency(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One prefill program is enough for eight tokens.
    monkeypatch.setattr(buckets, "PREFILL_TOKENS", (32,))
    gpu.main(["--tiny"])
    out = capsys.readouterr().out
    assert "logits differ from the CPU's by 0.0e+00" in out
    assert "GB/s" in out
    rows = [line for line in out.splitlines() if line.startswith("| tiny |")]
    assert [row.split("|")[2].strip() for row in rows] == ["1", "2"]


def test_without_an_accelerator_the_full_run_is_refused() -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
