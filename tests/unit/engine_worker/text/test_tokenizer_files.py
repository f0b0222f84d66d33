"""A folder's own files decide how text becomes tokens, whatever class they name."""

import json
import logging
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from engine_worker.errors import TokenizerLoadError
from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import read_tokenizer

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
CLASS_NAMES = sorted({str(name) for name in TOKENIZER_MAPPING_NAMES.values() if name})
TEXTS = [
    "",
    " ",
    "\n",
    "x = [\n    0.5]",
    "def f(a, b):\n\treturn {'k': [1, 2, 3]}\r\n\r\n# 100% done!!",
    "1234567890 3.14 1,000,000 0x1F ½ ٣",
    "  leading, trailing and   inner  spaces  ",
    "I'm you're they'LL don't",
    "水は低きに流れる。今天天气很好",
    "한국어 ไทย العربية עברית हिन्दी",
    "👍🏽👩‍👩‍👧 🇩🇪 e\u0301 n\u0303 ﬁ Ａ",
    "a\u00a0b\u200bc\u3000d\u2028e\ufefff",
    "\x00\x07\x1b[0m\x7f\u0085",
    "<|im_start|>user\nhi<|im_end|><tool_call>{}</tool_call> <s></s>[CLS]<unk>",
    "UPPER lower MiXeD ÄÖÜ ß İ",
    "a" * 1000,
    "lorem ipsum " * 200,
]
_RNG = random.Random(3)
TEXTS += [
    "".join(chr(_RNG.choice([*range(32, 127), 10, 9, 0x301, 0x4E2D, 0x1F600])) for _ in range(60))
    for _ in range(20)
]


def trained(backend: Backend, trainer: Any) -> Backend:
    backend.train_from_iterator([text for text in TEXTS if len(text) < 500] * 2, trainer)
    backend.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "</s>")]
    )
    backend.add_tokens(
        [
            AddedToken("<tool_call>", normalized=False),
            AddedToken("</tool_call>", normalized=True, lstrip=True),
        ]
    )
    return backend


def digits_and_bytes() -> Backend:
    """SmolLM2's shape."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    return trained(
        backend,
        BpeTrainer(vocab_size=600, initial_alphabet=list(byte_level_table()), min_frequency=1),
    )


def split_and_bytes() -> Backend:
    """Qwen's and Llama 3's shape, with a pattern of its own and a beginning that it adds."""
    backend = Backend(models.BPE(ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,2}|\s+|[^\p{L}\p{N}\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend = trained(
        backend,
        BpeTrainer(vocab_size=700, initial_alphabet=list(byte_level_table()), min_frequency=1),
    )
    token_id = backend.token_to_id("<|im_start|>")
    backend.post_processor = TemplateProcessing(
        single=["<|im_start|>", "$A"], special_tokens=[("<|im_start|>", token_id)]
    )
    return backend


def prepend_and_fallback() -> Backend:
    """Llama 2's shape."""
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return trained(backend, BpeTrainer(vocab_size=600, special_tokens=special, limit_alphabet=150))


def metaspace_unigram() -> Backend:
    """T5's and XLM-R's shape."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return trained(
        backend,
        UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>", "<s>"]),
    )


def word_pieces() -> Backend:
    """BERT's shape, uncased."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return trained(
        backend, WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    )


SHAPES: dict[str, Callable[[], Backend]] = {
    "digits": digits_and_bytes,
    "split": split_and_bytes,
    "llama2": prepend_and_fallback,
    "unigram": metaspace_unigram,
    "wordpiece": word_pieces,
}


@cache
def file_of(shape: str) -> str:
    text: str = SHAPES[shape]().to_str()
    return text


def folder_of(folder: Path, shape: str, **config: Any) -> Path:
    (folder / "tokenizer.json").write_text(file_of(shape), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("class_name", [*CLASS_NAMES, *OTHER_NAMES])
def test_tokenizer_json_decides_whatever_class_is_named(tmp_path: Path, class_name: str) -> None:
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
    """What `tokenizers` makes of the file: text, with special tokens or without, ids, text again."""
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
