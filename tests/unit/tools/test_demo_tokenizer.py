"""The shipped tokenizer: single digits, no spaces glued to words, every byte."""

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from engine_worker.demo import demo_model_path
from tools.demo_model.tokenizer import (
    MARKERS,
    SPECIAL_TOKENS,
    TURN_END,
    token_id,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text).ids]


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "2048") == ["2", "0", "4", "8"]


@pytest.mark.parametrize("value", ["Paris", "New York", "Krakow", "zulbrek", "bird.txt", "A-1042"])
def test_a_value_has_the_same_tokens_in_a_sentence_and_in_json(
    tokenizer: Tokenizer, value: str
) -> None:
    alone = tokenizer.encode(value).ids
    for text in (f"in {value} today", f'{{"city": "{value}"}}', f"\n{value}\n"):
        ids = tokenizer.encode(text).ids
        starts = range(len(ids) - len(alone) + 1)
        assert any(ids[start : start + len(alone)] == alone for start in starts)


def test_no_token_glues_a_space_to_a_letter_or_a_digit(tokenizer: Tokenizer) -> None:
    ordinary = [t for t in tokenizer.get_vocab() if t not in (*SPECIAL_TOKENS, *MARKERS)]
    space = "\u0120"  # how byte-level BPE spells a space
    assert any(token.startswith(space) for token in ordinary)
    for token in ordinary:
        letters = [c for c in token if c.isascii() and c.isalnum()]
        assert not (letters and space in token)


def test_every_byte_is_representable(tokenizer: Tokenizer) -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    for text in ("naïve café", "東京の天気", "🙂🙃", "a\tb\r\n\x00", "שלום"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_markers_stay_in_the_text_and_turn_ends_do_not(tokenizer: Tokenizer) -> None:
    text = "".join(MARKERS)
    ids = tokenizer.encode(text + TURN_END).ids
    assert len(ids) == len(MARKERS) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_training_the_tokenizer_keeps_the_asked_size() -> None:
    tokenizer = train_tokenizer(["the weather in Paris is fine"] * 3, 300)
    assert tokenizer.get_vocab_size() <= 300
    assert token_id(tokenizer, TURN_END) == SPECIAL_TOKENS.index(TURN_END)
    with pytest.raises(KeyError, match="missing"):
        token_id(tokenizer, "<missing>")
