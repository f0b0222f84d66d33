"""A folder's own files decide how text becomes tokens, whatever class they name."""

import base64
import json
import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from engine_worker.errors import TokenizerLoadError
from engine_worker.text import tokenizer_files
from engine_worker.text.sentencepiece_model import Piece, PieceType, SentencePieceModel
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import _add_missing_tokens, read_tokenizer
from tests.fakes.late import transformers
from tests.fakes.tokenizer_shapes import SHAPES, TEXTS, file_of

GOLDEN = Path(__file__).parent / "sentencepiece"
OTHER_NAMES = (
    "PreTrainedTokenizerFast",
    "PreTrainedTokenizer",
    "TokenizersBackend",
    "GPT2TokenizerFast",
    "Qwen2TokenizerFast",
    "LlamaTokenizerFast",
    "GemmaTokenizerFast",
    "BertTokenizerFast",
    "T5TokenizerFast",
    "XLMRobertaTokenizerFast",
    "NobodysTokenizer",
    "",
)


def folder_of(folder: Path, shape: str, **config: Any) -> Path:
    (folder / "tokenizer.json").write_text(file_of(shape), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "class_name", ["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"]
)
def test_classes_for_any_tokenizer_are_known_without_their_library(
    tmp_path: Path, class_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An import of it fails.
    for name in [name for name in sys.modules if name.startswith("transformers.models.auto")]:
        monkeypatch.setitem(sys.modules, name, None)
    for shape in SHAPES:
        folder = folder_of(tmp_path, shape, tokenizer_class=class_name)
        assert not {"bos_token", "eos_token"} & set(read_tokenizer(folder).special_tokens)


@pytest.mark.parametrize("class_name", OTHER_NAMES)
def test_tokenizer_json_decides_whatever_class_is_named(tmp_path: Path, class_name: str) -> None:
    assert_that_the_file_decides(tmp_path, class_name)


@pytest.mark.long
def test_tokenizer_json_decides_whichever_class_of_transformers_is_named(tmp_path: Path) -> None:
    names = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.values()
    for class_name in sorted({str(name) for name in names if name}):
        assert_that_the_file_decides(tmp_path, class_name)


def assert_that_the_file_decides(tmp_path: Path, class_name: str) -> None:
    for shape in SHAPES:
        folder = folder_of(
            tmp_path,
            shape,
            tokenizer_class=class_name,
            eos_token="<|im_end|>",
            add_prefix_space=True,
            clean_up_tokenization_spaces=True,
        )
        (folder / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
        ours = Tokenizer.load(folder)
        for text, add_special_tokens, expected, spelt in expected_of(shape):
            found = ours.encode(text, add_special_tokens=add_special_tokens)
            assert found == expected, (shape, text)
            assert ours.decode(expected) == spelt


@cache
def expected_of(shape: str) -> list[tuple[str, bool, list[int], str]]:
    """What `tokenizers` makes of the file: text, with special tokens or without, ids, text
    again."""
    backend = Backend.from_str(file_of(shape))
    found = []
    for text in TEXTS:
        for add_special_tokens in (False, True):
            ids = backend.encode(text, add_special_tokens=add_special_tokens).ids
            spelt = backend.decode(ids, skip_special_tokens=False)
            found.append((text, add_special_tokens, ids, spelt))
    return found


def test_a_file_that_cuts_or_pads_does_neither_here(tmp_path: Path) -> None:
    backend = Backend.from_str(file_of("digits"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.load(tmp_path).encode("one two three four five", add_special_tokens=False)
    assert found == Backend.from_str(file_of("digits")).encode("one two three four five").ids


def test_roles_templates_and_lengths_come_from_the_config(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        "digits",
        bos_token={"content": "<|im_start|>", "special": True},
        eos_token="<|im_end|>",
        pad_token=None,
        additional_special_tokens=["</s>"],
        image_token="<image>",
        model_max_length=512,
        chat_template=[
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "tools"},
        ],
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "</s>", "unk_token": "<tool_call>", "pad_token": "</s>"}),
        encoding="utf-8",
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_tokens_map() == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<tool_call>",
        "image_token": "<image>",
        "additional_special_tokens": ["</s>"],
    }
    assert tokenizer.max_length == 512
    assert tokenizer.chat_template_source(has_tools=False) == "plain"
    assert tokenizer.chat_template_source(has_tools=True) == "tools"
    (folder / "chat_template.jinja").write_text("of its own file", encoding="utf-8")
    assert Tokenizer.load(folder).chat_template_source(has_tools=False) == "of its own file"
    (eos,) = tokenizer.eos_token_ids
    assert tokenizer.token_text(eos) == "<|im_end|>"


def test_a_tokenizer_describes_itself_for_clients(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        "digits",
        tokenizer_class="GPT2Tokenizer",
        eos_token={"content": "<|im_end|>"},
        pad_token="</s>",
        bos_token=None,
        additional_special_tokens=["<|im_start|>"],
        model_max_length=2048,
        chat_template="{{ messages }}",
    )
    assert Tokenizer.load(folder).info() == {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "</s>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>"],
        "model_max_length": 2048,
        "chat_template": "{{ messages }}",
    }


def test_a_length_that_means_none_is_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "digits", model_max_length=1000000000000000019884624838656)
    assert Tokenizer.load(folder).max_length is None


def test_what_the_files_leave_to_their_class_is_the_class_s(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "digits", tokenizer_class="LlamaTokenizerFast")
    assert read_tokenizer(folder).special_tokens["eos_token"] == "</s>"
    folder = folder_of(tmp_path, "digits", tokenizer_class="LlamaTokenizerFast", eos_token=None)
    assert "eos_token" not in read_tokenizer(folder).special_tokens


def test_tokens_that_only_the_config_lists_are_added_at_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = Backend.from_str(file_of("digits")).get_vocab_size()
    added = {
        str(size + 1): {"content": "<|b|>", "special": False},
        str(size): {"content": "<|a|>", "special": True},
        str(size + 9): {"content": "<|far|>", "special": True},
    }
    tokenizer = Tokenizer.load(folder_of(tmp_path, "digits", added_tokens_decoder=added))
    found = tokenizer.encode("x<|a|><|b|>", add_special_tokens=False)
    assert found[1:] == [size, size + 1]
    assert tokenizer.special_token_ids >= {size}
    assert size + 1 not in tokenizer.special_token_ids
    assert "<|far|>" not in tokenizer.added_tokens()
    assert "<|far|>" in caplog.text


class CountingBackend:
    """A tokenizer that counts how often it is asked for what costs as much as it has tokens."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.num_costly_calls = 0

    def __getattr__(self, name: str) -> Any:
        self.num_costly_calls += name.startswith(("add_", "get_"))
        return getattr(self.backend, name)


@pytest.mark.parametrize("is_known", [True, False])
def test_any_number_of_listed_tokens_is_added_at_once(*, is_known: bool) -> None:
    backend = CountingBackend(Backend.from_str(file_of("digits")))
    first = backend.backend.get_vocab_size() + (0 if is_known else 5)
    stated = {
        str(first + index): {"content": f"<|{index}|>", "special": bool(index % 2)}
        for index in range(50)
    }
    texts = [token for token in backend.backend.get_vocab() if token.isalpha()][:20]
    roles = {"additional_special_tokens": texts}
    _add_missing_tokens(Path(), backend, {"added_tokens_decoder": stated}, roles)
    assert backend.num_costly_calls == 4
    added = {token.content: token for token in backend.backend.get_added_tokens_decoder().values()}
    assert all(added[text].special for text in texts)
    ids = [backend.backend.token_to_id(f"<|{index}|>") for index in range(50)]
    assert ids == ([first + index for index in range(50)] if is_known else [None] * 50)
    assert not is_known or [added[f"<|{index}|>"].special for index in (0, 1)] == [False, True]


def test_a_piece_that_no_trainer_makes_is_refused_before_it_is_cut_at_every_place() -> None:
    def backend(num_characters: int) -> Any:
        texts = [("<unk>", PieceType.UNKNOWN), ("a", PieceType.NORMAL), ("aa", PieceType.NORMAL)]
        texts += [("a" * num_characters, PieceType.NORMAL), ("b" * 9999, PieceType.USER_DEFINED)]
        pieces = tuple(Piece(text, -1.0, kind) for text, kind in texts)
        return SentencePieceModel(
            pieces=pieces,
            is_bpe=True,
            byte_fallback=False,
            unk_id=0,
            charsmap=b"",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            escape_whitespaces=False,
            roles={},
        ).backend()

    assert backend(512).get_vocab_size() == 5
    with pytest.raises(TokenizerLoadError, match="a piece of 513 characters; pieces of at most"):
        backend(513)


@pytest.mark.parametrize("shape", ["digits", "split"])
def test_a_beginning_that_the_config_asks_for_is_added_where_the_file_adds_nothing(
    tmp_path: Path, shape: str
) -> None:
    folder = folder_of(
        tmp_path,
        shape,
        bos_token="<|im_start|>",
        eos_token="</s>",
        add_bos_token=True,
        add_eos_token=True,
    )
    tokenizer = Tokenizer.load(folder)
    plain = tokenizer.encode("hello", add_special_tokens=False)
    whole = tokenizer.encode("hello", add_special_tokens=True)
    bos, eos = (tokenizer.added_token_ids()[text] for text in ("<|im_start|>", "</s>"))
    assert whole == ([bos, *plain, eos] if shape == "digits" else [bos, *plain])


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 6}, {5}),
        ({"eos_token_id": [5, 7]}, {}, {5, 7}),
        ({"eos_token_id": []}, {"eos_token_id": 6}, {6}),
        ({"eos_token_id": "5"}, {"eos_token_id": [6]}, {6}),
        ({"eos_token_id": [True, None, 5.5, -1]}, {"eos_token_id": 6}, {6}),
        ({"eos_token_id": {"a": 1}}, {}, set()),
    ],
)
def test_end_of_sequence_is_read_from_advice_that_may_be_wrong(
    tmp_path: Path, generation: Any, config: Any, expected: set[int]
) -> None:
    folder_of(tmp_path, "digits")
    (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Tokenizer.load(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100_000])
def test_broken_advice_stops_nothing_but_a_broken_tokenizer_config_does(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path, "digits", eos_token="</s>")
    (tmp_path / "generation_config.json").write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert len(Tokenizer.load(tmp_path).eos_token_ids) == 1
    assert "generation_config.json" in caplog.text
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TokenizerLoadError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


def test_a_tekken_file_alone_gives_its_ids_and_begins_each_text(tmp_path: Path) -> None:
    """Texts began without `<s>`, and outputs had no end unless `config.json` named one."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    words = [bytes([number]) for number in range(256)]
    words += [b"he", b"ll", b"hell", b"hello", b" w", b" wo", b"rl", b"rld", b" world"]
    config = {
        "pattern": r"\p{L}+| ?[^\s\p{L}]+| \p{L}+|\s+",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(words) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v3",
    }
    content = {
        "config": config,
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
            for rank, word in enumerate(words)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(special)
        ],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    shift = len(special)
    expected = [3, shift + words.index(b"hello"), shift + words.index(b" world")]
    assert tokenizer.encode("[INST]hello world", add_special_tokens=False) == expected
    assert tokenizer.encode("[INST]hello world", add_special_tokens=True) == [1, *expected]
    assert tokenizer.eos_token_ids == {2}


def test_a_tokenizer_of_another_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """Its ids were those of no row, or of a wrong one."""
    folder = folder_of(tmp_path, "digits")
    num_words = Backend.from_file(str(folder / "tokenizer.json")).get_vocab_size(
        with_added_tokens=False
    )
    assert Tokenizer.load(folder, vocab_size=num_words)
    with pytest.raises(
        TokenizerLoadError,
        match=rf"{num_words} words, but the model has {num_words - 1} ids",
    ):
        Tokenizer.load(folder, vocab_size=num_words - 1)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"],
)
def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = folder_of(tmp_path, "digits")
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENIZER_BYTES", 2**24)
    with (folder / name).open("ab") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(TokenizerLoadError, match=f"it has {2**24 + 1} bytes, and at most {2**24}"):
        Tokenizer.load(folder)


def test_advice_that_is_too_large_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, "digits")
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate(2**30)
    with caplog.at_level(logging.WARNING):
        Tokenizer.load(folder)
    assert f"it has {2**30} bytes" in caplog.text


def golden() -> dict[str, Any]:
    content = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("name", ["llama", "gemma", "t5", "unigram_bytes"])
def test_a_sentencepiece_model_alone_gives_the_tokens_of_sentencepiece(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / f"{name}.model").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    content = golden()
    num_compared = 0
    for text, expected in zip(content["texts"], content["ids"][name], strict=True):
        if "<unk>" in text:
            # A special token here, as in transformers; sentencepiece spells it.
            continue
        found = tokenizer.encode(text, add_special_tokens=False)
        assert found == expected, text
        num_compared += 1
    assert num_compared > 250


@pytest.mark.parametrize("name", ["llama", "gemma", "unigram_bytes"])
def test_text_goes_through_a_sentencepiece_model_and_back(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / f"{name}.model").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    for text in golden()["texts"]:
        if "▁" not in text and "<unk>" not in text:
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(token_ids) == text
            detokenizer = tokenizer.detokenizer(())
            pieces = [detokenizer.push(token_id) for token_id in token_ids]
            assert "".join([*pieces, detokenizer.finish()]) == text


def test_a_sentencepiece_model_says_its_own_roles_and_control_pieces(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / "gemma.model").read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens_map()["eos_token"] == "</s>"
    found = tokenizer.encode("<start_of_turn>user<tool>x<end_of_turn>", add_special_tokens=False)
    texts = [tokenizer.token_text(token_id) for token_id in found]
    assert (texts[0], texts[-1]) == ("<start_of_turn>", "<end_of_turn>")
    assert "<tool>" in texts
    assert found[0] in tokenizer.special_token_ids
    assert tokenizer.added_token_ids()["<tool>"] not in tokenizer.special_token_ids
    assert len(tokenizer.eos_token_ids) == 1


@pytest.mark.parametrize(
    ("class_name", "ends"),
    [("LlamaTokenizer", ("<s>", None)), ("T5Tokenizer", (None, "</s>")), ("", (None, None))],
)
def test_a_sentencepiece_model_gets_the_ends_of_its_class(
    tmp_path: Path, class_name: str, ends: tuple[str | None, str | None]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / "llama.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": class_name}), encoding="utf-8"
    )
    tokenizer = Tokenizer.load(tmp_path)
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    first, last = ([] if text is None else [tokenizer.added_token_ids()[text]] for text in ends)
    assert tokenizer.encode("Hello", add_special_tokens=True) == [*first, *plain, *last]


def test_a_broken_sentencepiece_model_is_one_clear_error(tmp_path: Path) -> None:
    whole = (GOLDEN / "llama.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    for data in (
        whole[:-100],
        whole[: len(whole) // 2],
        b"\x0a",
        b"\x0a\xff\xff\xff\xff",
        whole[:9],
    ):
        path.write_bytes(data)
        with pytest.raises(TokenizerLoadError, match=r"tokenizer\.model"):
            Tokenizer.load(tmp_path)


def test_an_end_of_sequence_that_the_model_doesnt_have_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, "digits", eos_token=None)
    advice = folder / "generation_config.json"
    advice.write_text(json.dumps({"eos_token_id": [1, 2**40]}))
    with caplog.at_level(logging.WARNING):
        assert Tokenizer.load(folder, vocab_size=1000).eos_token_ids == {1}
    assert f"{2**40}], no token id; it is left out" in caplog.text
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    advice.write_text(json.dumps({"eos_token_id": 1000}))
    assert Tokenizer.load(folder, vocab_size=1000).eos_token_ids == {3}
    assert Tokenizer.load(folder).eos_token_ids == {1000}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.clear(), "cannot be loaded: Model missing.*; name a folder"),
        (lambda state: state["model"].update(vocab={}, merges=[]), "has no words; name a folder"),
        (
            lambda state: state["model"]["vocab"].update(far=2**32 - 1),
            "word with the id 4294967295",
        ),
    ],
)
def test_a_vocabulary_that_is_no_models_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    """Without words all texts became nothing; an id far away cost a minute for those below it."""
    state = json.loads(file_of("digits"))
    change(state)
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(TokenizerLoadError, match=named):
        read_tokenizer(tmp_path)
