"""Tokens that a folder names for the beginning and the end of texts, and that aren't there."""

from pathlib import Path

import pytest

from engine_worker.text.tokenizer import Tokenizer
from tests.unit.engine_worker.text.test_tokenizer_files import folder_of


def test_an_end_that_is_none_of_the_tokens_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Answers went on to their last token, and nothing said why."""
    names = {"bos_token": "<|begin|>", "eos_token": "<|nowhere|>"}
    tokenizer = Tokenizer.load(folder_of(tmp_path, "digits", **names, add_bos_token=True))
    assert tokenizer.eos_token_ids == set()
    assert tokenizer.encode("a", add_special_tokens=True) == tokenizer.encode(
        "a", add_special_tokens=False
    )
    for role, text in names.items():
        assert f"{role} is {text!r}, which is none of the tokenizer's tokens" in caplog.text
