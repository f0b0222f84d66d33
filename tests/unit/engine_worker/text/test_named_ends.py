"""Tokens that a folder names for the beginning and the end of texts, and that aren't there."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_worker.errors import TokenizerLoadError
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


NOWHERE = {"eos_token": "<|nowhere|>"}


@pytest.mark.parametrize(
    ("roles", "generation", "config", "named"),
    [
        (NOWHERE, {}, {}, "eos_token '<|nowhere|>'"),
        ({}, {"eos_token_id": 900}, {}, "eos_token_id 900 (generation_config.json)"),
        ({}, {}, {"eos_token_id": [901, "</s>"]}, "(config.json)"),
        # An id of the model that no token of this tokenizer has.
        ({}, {}, {"eos_token_id": 650}, "eos_token_id 650"),
        (NOWHERE, {"eos_token_id": 900}, {"eos_token_id": 650}, "650, eos_token '<|nowhere|>'"),
    ],
)
def test_a_tokenizer_with_none_of_the_ends_that_are_named_generates_nothing(
    tmp_path: Path, roles: dict[str, Any], generation: Any, config: Any, named: str
) -> None:
    """It was served, and every answer went on to `max_tokens`."""
    folder = folder_of(tmp_path, "digits", **roles)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(folder, vocab_size=700)
    with pytest.raises(TokenizerLoadError) as caught:
        tokenizer.require_end(folder)
    assert str(folder) in str(caught.value)
    assert named in str(caught.value)
    assert "--tokenizer FOLDER" in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "config"),
    [
        (NOWHERE, {"eos_token_id": 5}),
        ({"eos_token": "</s>"}, {"eos_token_id": [900]}),
        ({}, {"eos_token_id": [5, 650, 900]}),
    ],
)
def test_where_one_of_several_ends_is_there_the_others_are_told_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, roles: dict[str, Any], config: Any
) -> None:
    folder = folder_of(tmp_path, "digits", **roles)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(folder, vocab_size=700)
    tokenizer.require_end(folder)
    assert tokenizer.eos_token_ids
    assert "eos_token" in caplog.text
