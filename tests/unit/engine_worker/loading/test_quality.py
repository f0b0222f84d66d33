"""`penstock quality`: what is measured, kept and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_worker import quality
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.loading import memory_estimate
from engine_worker.loading.decoder import choose_for_settings
from engine_worker.loading.memory_estimate import estimate_memory
from engine_worker.loading.quality import measure_quality
from engine_worker.loading.quality_record import read_quality
from tests.fakes.gguf_files import write_gguf
from tests.fakes.packed_decoder import packed
from tests.fakes.tiny_checkpoint import write_checkpoint
from tests.fakes.tiny_decoder import GreedyReference, tiny_weights
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

TOKEN_IDS = np.random.default_rng(0).integers(0, 64, 100).tolist()


@pytest.fixture(scope="module")
def exact() -> PackedDecoder:
    return packed(tiny_weights(), "xla", "float32", 32)


def test_a_decoder_is_itself(exact: PackedDecoder) -> None:
    told: list[float] = []
    found = measure_quality(exact, exact, TOKEN_IDS, told.append, window=32)
    # Three whole pieces, whose first tokens nobody predicts.
    assert found.num_tokens == 3 * 31
    assert found.kl_divergence == 0.0
    assert found.top_1_agreement == 1.0
    assert found.perplexity == found.reference_perplexity
    assert told == [pytest.approx(n / 3) for n in (1, 2, 3)]


def test_numbers_are_those_of_whole_distributions(exact: PackedDecoder) -> None:
    coarse = packed(tiny_weights(), "xla", "int8", 32)
    found = measure_quality(coarse, exact, TOKEN_IDS[:70], lambda done: None, window=70)

    logits = GreedyReference(tiny_weights(), 70).logits(TOKEN_IDS[:70]).astype(np.float64)
    theirs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -theirs[np.arange(69), np.asarray(TOKEN_IDS[1:70])].mean()
    assert found.reference_perplexity == pytest.approx(np.exp(loss), rel=1e-4)
    assert 0 < found.kl_divergence < found.kl_divergence_p99 < 1
    assert 0.8 < found.top_1_agreement <= 1
    assert found.perplexity != found.reference_perplexity


def test_a_text_of_one_token_is_refused(exact: PackedDecoder) -> None:
    with pytest.raises(ValueError, match="fewer than two tokens"):
        measure_quality(exact, exact, [1], lambda done: None)


def test_the_command_prints_the_record_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is 12 + 30? It is 42. " * 30, encoding="utf-8")
    arguments = ["--dtype", "int8", "--backend", "xla", "--kv-dtype", "int8", "--text", str(text)]
    caches = ["--weights-cache", str(tmp_path / "weights"), "--compile-cache", str(tmp_path / "c")]
    assert quality.main([*arguments, *caches]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (printed["weights"], printed["backend"]) == ("int8", "xla")
    assert printed["kv"] == "int8, one scale a token and key head"
    assert printed["reference"] == "float32 on xla"
    assert float(printed["top_1_agreement"]) > 0.9
    (record,) = (tmp_path / "weights").glob("*.quality.json")
    kept = json.loads(record.read_text())
    assert kept["text"] == "text.txt"
    assert {name: str(value) for name, value in kept.items()} == printed
    # Engines with other keys and values show nothing of it.
    settings = ModelSettings.from_env({"PENSTOCK_DTYPE": "int8", "PENSTOCK_BACKEND": "xla"})
    for kv_dtype, shown in (("int8", kept), ("auto", None)):
        backend = choose_for_settings(replace(settings, kv_dtype=kv_dtype))
        offered = read_quality(tmp_path / "weights", settings.path, backend)
        assert (json.loads(offered) if offered else None) == shown


@pytest.mark.parametrize(
    ("free_bytes", "name"),
    [(2**20, "penstock-demo"), (0, "beside penstock-demo the model to compare it with")],
)
def test_two_models_that_do_not_fit_at_once_are_refused_before_either_is_read(
    free_bytes: int,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ModelSettings.from_env({"PENSTOCK_DTYPE": "float32", "PENSTOCK_BACKEND": "xla"})
    backend = choose_for_settings(settings)
    if not free_bytes:  # room for either alone, of which neither is beside the other
        estimate = estimate_memory(
            backend,
            settings,
            kv_memory_bytes=None,
            checkpoint=open_checkpoint(settings.path),
        )
        free_bytes = estimate.total_bytes + estimate.weights_bytes // 2

    def load(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("engine_worker.loading.weights.load_for_backend", load)
    monkeypatch.setattr(memory_estimate, "_free_bytes", lambda: free_bytes)
    caches = ["--weights-cache", str(tmp_path / "w"), "--compile-cache", str(tmp_path / "c")]
    assert quality.main(["--dtype", "float32", "--backend", "xla", *caches]) == 1
    assert f"{name} needs about" in capsys.readouterr().err


def test_a_gguf_file_is_compared_with_what_it_was_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny-Q8_0.gguf"
    write_gguf(path, demo_model_path(), kind="Q8_0")
    text = tmp_path / "text.txt"
    text.write_text("What is 12 + 30? It is 42. " * 30, encoding="utf-8")
    options = ["--dtype", "float32", "--backend", "xla", "--text", str(text)]
    options += ["--weights-cache", str(tmp_path / "w"), "--compile-cache", str(tmp_path / "c")]
    assert quality.main([str(path), "--against", str(demo_model_path()), *options]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["reference"] == "float32 on xla, demo"
    # The same numbers but for rounding to eight bits: near, and not the same.
    assert 1e-6 < float(printed["kl_divergence"]) < 0.01
    other = tmp_path / "other"
    other.mkdir()
    write_checkpoint(other)
    (other / "tokenizer.json").write_text(byte_level_tokenizer().serialized(), encoding="utf-8")
    assert quality.main([str(path), "--against", str(other), *options]) == 1
    assert "reads the text as other tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"a" * (4 * 2**20 + 1), "more than"), (b"", "two tokens")],
)
def test_a_text_that_is_none_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    caches = ["--weights-cache", str(tmp_path / "weights"), "--compile-cache", str(tmp_path / "c")]
    assert quality.main(["--text", str(tmp_path / "text.txt"), *caches]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_text_and_a_missing_model_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--text", str(tmp_path / "none.txt")]) == 1
    assert "none.txt: No such file" in capsys.readouterr().err
    assert quality.main([str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
