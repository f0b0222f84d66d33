"""Folders whose tokenizer is a tiktoken file alone: its ids without its package, or a way out.

`reference` is tiktoken's algorithm as its documentation has it. Beside that, 28,000 pieces of text
of either kind were compared with the package itself (0.14.0) when this was written: no id differed.
"""

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.errors import TokenizerLoadError
from engine_worker.text import tiktoken_file
from engine_worker.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from engine_worker.text.tiktoken_file import read_tiktoken
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import read_tokenizer

WORDS = (
    *("th", "the", " t", " the", "er", "he", "her", "in", "ing", " a", " an", "and", " and", "12"),
    *("123", "  ", "    ", "\n\n", "'s", "'t", "的", "模型", "é", "ab", "aba", "ba", "bab", "Don"),
)
TOKENS = tuple(
    dict.fromkeys(
        [
            *(bytes([byte]) for byte in range(256)),
            # Each Chinese character is made of its bytes, two at first.
            *(word.encode()[:2] for word in WORDS if len(word.encode()) > len(word)),
            *("型".encode()[:2], "型".encode(), "模".encode()),
            *(word.encode() for word in WORDS),
        ]
    )
)
RANKS = {token: rank for rank, token in enumerate(TOKENS)}
END = {str(len(TOKENS)): {"content": "<|end|>", "special": True}}
MOONSHOT = "TikTokenTokenizer"
PATTERNS = {
    "": PRE_TOKENIZERS["llama3"].patterns,
    MOONSHOT: tiktoken_file._CUTS[MOONSHOT].patterns,
}


def lines_of(tokens: tuple[bytes, ...] = TOKENS) -> str:
    return "".join(f"{base64.b64encode(one).decode()} {rank}\n" for rank, one in enumerate(tokens))


def reference(text: str, class_name: str) -> list[int]:
    """Each word's tokens: the pair of the lowest rank is joined, the first of them, until none."""
    (pattern,) = PATTERNS[class_name] or ()
    found: list[int] = []
    for word in regex.findall(pattern, text, regex.V1):
        whole = word.encode()
        parts = [whole] if whole in RANKS else [bytes([byte]) for byte in whole]
        while True:
            pairs = [RANKS.get(a + b) for a, b in pairwise(parts)]
            known = [rank for rank in pairs if rank is not None]
            if not known:
                break
            at = pairs.index(min(known))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [RANKS[part] for part in parts]
    return found


def folder_of(folder: Path, name: str, **config: Any) -> Path:
    (folder / name).write_text(lines_of(), encoding="ascii")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["", MOONSHOT])
def class_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backend(class_name: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    path.write_text(lines_of(), encoding="ascii")
    return read_tiktoken(path, class_name, {"added_tokens_decoder": END})[0]


TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*WORDS, " ", "A", "ABC", "İ", "ß", "!", "…\r\n", "x"])).map("".join),
)


@given(text=TEXTS)
@settings(deadline=None)
def test_ids_are_those_of_tiktokens_algorithm(text: str, class_name: str, backend: Any) -> None:
    ids = backend.encode(text, add_special_tokens=False).ids
    assert ids == reference(text, class_name)
    assert backend.decode(ids) == text


def test_a_folder_of_moonshots_is_read_with_its_special_tokens(tmp_path: Path) -> None:
    """Its own class is code of the folder, which is never run; ids between have tokens too."""
    first = len(TOKENS)
    stated = {first: "[BOS]", first + 1: "[EOS]", first + 2: "<|im_end|>", first + 7: "[PAD]"}
    folder = folder_of(
        tmp_path,
        "tiktoken.model",
        tokenizer_class=MOONSHOT,
        auto_map={"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
        added_tokens_decoder={
            str(number): {"content": text, "special": True} for number, text in stated.items()
        },
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
    )
    tokenizer = Tokenizer.load(folder, vocab_size=first + 8)
    ids = tokenizer.encode("[BOS]the<|im_end|>[PAD]", add_special_tokens=True)
    assert ids == [first, RANKS[b"the"], first + 2, first + 7]
    backend = read_tokenizer(folder).backend
    assert backend.id_to_token(first + 3) == f"<|reserved_token_{first + 3}|>"
    assert backend.get_vocab_size() == first + 8


def test_llama_3s_file_begins_texts_with_the_token_that_its_config_names(tmp_path: Path) -> None:
    first = len(TOKENS)
    folder = folder_of(
        tmp_path,
        "tokenizer.model",
        tokenizer_class="PreTrainedTokenizerFast",
        added_tokens_decoder={str(first): {"content": "<|begin_of_text|>", "special": True}},
        bos_token="<|begin_of_text|>",
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("the", add_special_tokens=True) == [first, RANKS[b"the"]]
    assert tokenizer.encode("the", add_special_tokens=False) == [RANKS[b"the"]]


def test_a_tokenizer_json_goes_before(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "tiktoken.model", tokenizer_class="NobodysTokenizer")
    with pytest.raises(TokenizerLoadError):
        read_tokenizer(folder)
    path = tmp_path / "own" / "tokenizer.model"
    path.parent.mkdir()
    path.write_text(lines_of(), encoding="ascii")
    read_tiktoken(path, "", {"added_tokens_decoder": END})[0].save(str(folder / "tokenizer.json"))
    assert read_tokenizer(folder).backend.encode("the").ids == [RANKS[b"the"]]


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("qwen.tiktoken", "QWenTokenizer"),
        ("qwen.tiktoken", ""),
        ("tokenizer.model", "ChatGLM4Tokenizer"),
        ("tiktoken.model", "PreTrainedTokenizerFast"),
    ],
)
def test_a_file_that_says_too_little_is_refused_with_the_way_out(
    tmp_path: Path, name: str, class_name: str
) -> None:
    """Of some of them a tokenizer without a word was made."""
    folder = folder_of(tmp_path, name, tokenizer_class=class_name)
    (folder / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    with pytest.raises(TokenizerLoadError) as caught:
        read_tokenizer(folder)
    message = str(caught.value)
    assert name in message
    assert repr(class_name) in message
    assert message.endswith("name a folder with the model's tokenizer.json by --tokenizer")


LONG = base64.b64encode(b"x" * 1025).decode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "line 1 is no token and its rank"),
        (lines_of() + "dGhl\n", f"line {len(TOKENS) + 1} is no token"),
        (lines_of() + "dG!hl 9\n", f"line {len(TOKENS) + 1} is no token"),
        (lines_of() + "dGhl 5\n", f"not the token of rank {len(TOKENS)}"),
        (lines_of() + f"{LONG} {len(TOKENS)}\n", "a token of 1025 bytes"),
        (lines_of(TOKENS[:200]), "56 of the 256 bytes are no tokens"),
        (lines_of()[:400], r"line \d+ is no token|of the 256 bytes"),
        ("", "256 of the 256 bytes"),
        (lines_of(TOKENS[10:]), "10 of the 256 bytes are no tokens"),
        (lines_of((*TOKENS, b"the")), f"not the token of rank {len(TOKENS)}"),
    ],
)
def test_a_broken_file_is_refused_naming_the_line(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(content, encoding="ascii")
    with pytest.raises(TokenizerLoadError, match=named) as caught:
        read_tokenizer(tmp_path)
    assert str(path) in str(caught.value)
    assert "download it again" in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tiktoken.model").open("wb") as file:
        file.truncate(2**34)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "{MOONSHOT}"}}')
    with pytest.raises(TokenizerLoadError, match=f"it has {2**34} bytes, and at most"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["1000000000", "9" * 5000, "x", str(2**20)])
def test_a_listed_id_far_away_makes_no_tokens_up_to_it(tmp_path: Path, key: str) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_text(lines_of(), encoding="ascii")
    config = {"added_tokens_decoder": {**END, key: {"content": "<far>"}}}
    assert read_tiktoken(path, MOONSHOT, config)[1] == {"add_bos_token": False, **config}


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ({}, "says nothing of special tokens"),
        ({5: "<|end|>"}, "says nothing of special tokens"),
        ({0: "<|end|>", 1: "the"}, f"'the'.* with id {len(TOKENS) + 1}, is another token"),
        ({0: "<|end|>", 1: "<|end|>"}, r"'<\|end\|>'.* is another token already"),
        (
            {0: f"<|reserved_token_{len(TOKENS) + 1}|>", 2: "<|end|>"},
            "reserved_token_.* is another token already",
        ),
    ],
)
def test_special_tokens_that_cant_be_the_models_are_refused(
    tmp_path: Path, listed: dict[int, str], named: str
) -> None:
    """Without its end token a model was served that never stopped."""
    first = 0 if 5 in listed else len(TOKENS)
    stated = {str(first + at): {"content": text} for at, text in listed.items()}
    folder = folder_of(tmp_path, "tokenizer.model", added_tokens_decoder=stated)
    with pytest.raises(TokenizerLoadError, match=named):
        read_tokenizer(folder)


def test_tokens_that_can_be_joined_in_many_ways_take_no_memory(tmp_path: Path) -> None:
    """Each run of a letter is made of any two shorter ones."""
    runs = (bytes([byte]) * length for byte in b"ab" for length in range(2, 257))
    tokens = (*(bytes([byte]) for byte in range(256)), *runs)
    path = tmp_path / "tokenizer.model"
    path.write_text(lines_of(tokens), encoding="ascii")
    with pytest.raises(TokenizerLoadError, match="joined in more than 8 ways each"):
        read_tokenizer(tmp_path)


def test_words_and_merges_go_before_ranks_and_a_broken_file_before_its_class(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path, "qwen.tiktoken", tokenizer_class="Qwen2Tokenizer")
    words = {chr(33 + at): at for at in range(94)}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    assert read_tokenizer(folder).backend.encode("ab").ids == [words["a"], words["b"]]
    (folder / "vocab.json").unlink()
    (folder / "qwen.tiktoken").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TokenizerLoadError, match="line 1 is no token.* download it again"):
        read_tokenizer(folder)


def test_a_folder_without_any_tokenizer_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(TokenizerLoadError, match=r"has no tokenizer \(tokenizer\.json, .*; put"):
        read_tokenizer(tmp_path)


def test_what_transformers_says_of_a_folder_ends_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    with pytest.raises(TokenizerLoadError, match=r"cannot be loaded: .*; name a folder with"):
        read_tokenizer(tmp_path)
