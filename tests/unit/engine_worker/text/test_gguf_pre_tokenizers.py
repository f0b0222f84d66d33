"""How the pre-tokenizers that a GGUF file may name cut text, by what llama.cpp says of each."""

import pytest

from engine_worker.text.gguf_pre_tokenizers import PRE_TOKENIZERS


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("viking", ["Hej", ",", " ", "2", "0", "2", "4", " (", "ok", ")!"]),
        ("bloom", ["Hej", ",", " 2024", " (", "ok", ")!"]),
        ("superbpe", ["in ", "1", "234", "567", " ways to go"]),
        ("afmoe", ["x", "12", "345", " ", "แ", "น", " y"]),
        ("ufakzeka", ["Ankara", "'dan", " ", "1", "2"]),
        ("laguna", ["a", "!", "\n\n", "b"]),
        ("jais-2", ["a", " " * 8, " " * 4, "  ", " b", "!\n", "123", "4"]),
        ("exaone-moe", ["in a", " ", "1", "!\n", "\n", "b"]),
        ("youtu", ["你好", "ㄅㄆ", "「", "한국", "Ab", "C'S", "1", " ", "2"]),
        ("chameleon", ["IMGIMGABZ", "a", "  ", "b", "\n", "1", "2", ".", ",", " c"]),
        ("spark2_5", ["a", "!", "\n", "1", "2", "3", "4", "漢字"]),
    ],
)
def test_a_text_is_cut_into_these_words(name: str, words: list[str]) -> None:
    text = "".join(words)
    pieces = PRE_TOKENIZERS[name].splits().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("jais", "gpt-2"),
        ("stablelm2", "hunyuan"),
        ("kormo", "hunyuan"),
        ("talkie", "gpt-4o"),
        ("hy_v4", "deepseek-v3"),
        ("poro-chat", "bloom"),
        ("gpt3-finnish", "bloom"),
    ],
)
def test_some_names_mean_the_same(name: str, other: str) -> None:
    assert PRE_TOKENIZERS[name] == PRE_TOKENIZERS[other]
