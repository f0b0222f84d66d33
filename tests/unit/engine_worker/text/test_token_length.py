"""What the length of a text says about the number of its tokens, and when it says nothing."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from engine_worker.demo import demo_model_path
from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.token_length import max_token_bytes
from tests.fakes import tiny_tokenizers

BYTES = models.BPE(vocab={**byte_level_table(), "ĠĠ": 256, "he": 257}, merges=[("Ġ", "Ġ")])
FALLBACK = {"<unk>": 0, "▁▁": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}


def byte_level(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    backend = Tokenizer(BYTES)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def fallback() -> Tokenizer:
    backend = Tokenizer(
        models.BPE(vocab=FALLBACK, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def test_the_longest_token_counts_in_the_bytes_that_it_stands_for() -> None:
    assert max_token_bytes(byte_level()) == 2
    backend = byte_level()
    backend.add_tokens([AddedToken("<é>")])
    assert max_token_bytes(backend) == 4
    # A stand-in for a space may be there in the text itself.
    assert max_token_bytes(fallback()) == 6
    assert max_token_bytes(byte_level(normalizers.NFC())) == 8


@pytest.mark.parametrize(
    "make",
    [byte_level, fallback, lambda: byte_level(normalizers.NFC())],
    ids=["bytes", "fallback", "nfc"],
)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from(" \n▁é\u0301\u0308\u1fbe\u1100")))
def test_no_text_has_fewer_tokens_than_its_bytes_say(
    make: Callable[[], Tokenizer], text: str
) -> None:
    backend = make()
    num_tokens = len(backend.encode(text, add_special_tokens=False).ids)
    assert len(text.encode()) <= max_token_bytes(backend) * num_tokens


def with_removing_split() -> Tokenizer:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def with_missing_bytes() -> Tokenizer:
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def with_a_token_that_swallows_space() -> Tokenizer:
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    return backend


def with_fused_unknowns() -> Tokenizer:
    return Tokenizer(models.BPE(vocab={"<unk>": 0}, merges=[], unk_token="<unk>", fuse_unk=True))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (with_removing_split, " " * 1000),
        (with_missing_bytes, "b" * 1000),
        (with_a_token_that_swallows_space, "<|end|>" + " " * 1000),
        (lambda: byte_level(normalizers.Strip()), " " * 1000),
        (lambda: byte_level(normalizers.Replace("  ", "")), " " * 1000),
        (lambda: byte_level(normalizers.StripAccents()), "a" + "\u0301" * 1000),
        (with_fused_unknowns, "日" * 1000),
        (lambda: tiny_tokenizers.wordpiece_tokenizer()._backend, "日" * 1000),
    ],
)
def test_where_long_texts_can_become_few_tokens_nothing_is_said(
    make: Callable[[], Tokenizer], text: str
) -> None:
    backend = make()
    assert max_token_bytes(backend) == 0
    assert len(backend.encode(text, add_special_tokens=False).ids) < 10


def test_the_bundled_model_tells_its_longest_token() -> None:
    backend = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    assert 8 <= max_token_bytes(backend) <= 64
