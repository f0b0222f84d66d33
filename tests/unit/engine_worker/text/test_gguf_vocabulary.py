"""Vocabularies in GGUF files: the same ids as the tokenizer that they were written from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from engine_worker.errors import TokenizerLoadError
from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from engine_worker.text.gguf_vocabulary import GgufTokenizer, read_gguf_tokenizer
from engine_worker.text.tokenizer import Tokenizer
from protocol.runtime.gguf_header import read_gguf
from tests.fakes.gguf_files import add_vocabulary
from tests.fakes.tokenizer_shapes import TEXTS, prepend_and_fallback

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KIMI_K2 = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

BYTES = sorted(byte_level_table(), key=byte_level_table().__getitem__)


def split_by(*patterns: str) -> Any:
    """As these models' `tokenizer.json` has it."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


SHAPES: dict[str, tuple[Any, Any, bool]] = {
    "llama-bpe": (None, split_by(_LLAMA_3), True),
    "dbrx": (None, split_by(_LLAMA_3), False),
    "glm4": (None, split_by(_LLAMA_3), False),
    "qwen2": (normalizers.NFC(), split_by(_QWEN_2), False),
    "gpt-4o": (None, split_by(_O200K), False),
    "tekken": (None, split_by(_TEKKEN), True),
    "f2llmv2": (normalizers.NFC(), split_by(_QWEN_2), False),
    "granite-embed-multi-97m": (None, split_by(_O200K), True),
    "kimi-k2": (None, split_by(_KIMI_K2), True),
    "deepseek-v3": (None, split_by(*_DEEPSEEK_V3), False),
    "smollm": (None, _digits(), False),
    "starcoder": (None, _digits(), False),
    "refact": (None, _digits(), False),
    "command-r": (normalizers.NFC(), _digits(), False),
    "gpt-2": (None, pre_tokenizers.ByteLevel(False), False),
    "olmo": (normalizers.NFC(), pre_tokenizers.ByteLevel(False), False),
}


def byte_level(name: str) -> Backend:
    """A tokenizer in the shape of a family, trained on a few texts, with a gap in its ids."""
    normalizer, pre_tokenizer, whole_words = SHAPES[name]
    backend = Backend(models.BPE(ignore_merges=whole_words))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = list(byte_level_table())
    backend.train_from_iterator(
        [text for text in TEXTS if len(text) < 500] * 2,
        BpeTrainer(vocab_size=900, initial_alphabet=alphabet, min_frequency=1),
    )
    backend.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    backend.add_tokens(
        [AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)]
    )
    return backend


def metadata_of(path: Path, more: Callable[[GGUFWriter], None]) -> Any:
    writer = GGUFWriter(path, "llama")
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(path).metadata


def read(tmp_path: Path, more: Callable[[GGUFWriter], None]) -> GgufTokenizer:
    path = tmp_path / "m.gguf"
    return read_gguf_tokenizer(metadata_of(path, more), path)


def assert_same(ours: Backend, theirs: Backend) -> None:
    for text in TEXTS:
        found = ours.encode(text, add_special_tokens=False)
        expected = theirs.encode(text, add_special_tokens=False)
        assert found.ids == expected.ids, repr(text)
        for skip in (True, False):
            decoded = ours.decode(found.ids, skip_special_tokens=skip)
            assert decoded == theirs.decode(expected.ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_byte_level_vocabularies_give_the_ids_of_the_original(tmp_path: Path, name: str) -> None:
    original = byte_level(name)

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        add_vocabulary(writer, original)
        writer.add_eos_token_id(original.token_to_id("<|im_end|>"))

    found = read(tmp_path, more)
    assert_same(Backend.from_str(found.tokenizer_json), original)
    assert found.config["add_bos_token"] is (name in ("llama-bpe", "tekken"))
    # The end of the turn, and what ends an output in every model that has it.
    assert found.eos_token_ids == tuple(map(original.token_to_id, ("<|im_end|>", "<|endoftext|>")))


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_splits_texts_without_losing_any(tmp_path: Path, name: str) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list([*BYTES, "ab"])
        writer.add_token_merges(["a b"])

    tokenizer = Backend.from_str(read(tmp_path, more).tokenizer_json)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        expected = normalizers.NFC().normalize_str(text) if PRE_TOKENIZERS[name].is_nfc else text
        assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        # Letters of scripts without case are apart from others, and so are ASCII from accented.
        ("deepseek-llm", "to Füße 世界,こんにちは", "to| F|üß|e| |世界|,|こんにちは"),
        ("deepseek-llm", "a12 + b!\n\nСтрана ʔa", "a|1|2| +| b|!|\n|\n|Страна| ʔ|a"),
        ("deepseek-coder", "def f(x1):\n  pass", "def| f|(|x|1|):|\n| | pass"),
        ("deepseek-v3", "a12345\n世界x", "a|123|45|\n|世界|x"),
        ("minicpm5", "It's 12345 Füße\n", "It|'s| |123|45| Füße|\n"),
        ("tiny_aya", "12345678 HelloWorld's 12", "12|345|678| Hello|World's| |12"),
    ],
)
def test_texts_are_cut_as_the_original_cuts_them(name: str, text: str, words: str) -> None:
    cut = PRE_TOKENIZERS[name].splits().pre_tokenize_str(text)
    assert [text[first:end] for _, (first, end) in cut] == words.split("|")


@pytest.mark.parametrize("name", [None, "default", "qwen2"])
def test_a_file_that_names_no_pre_tokenizer_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str | None
) -> None:
    """Other words make other tokens, and nothing said why the answers were poor."""

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if name is not None:
            writer.add_tokenizer_pre(name)
        writer.add_token_list([*BYTES, "ab"])
        writer.add_token_merges(["a b"])

    read(tmp_path, more)
    assert ("m.gguf names no pre-tokenizer" in caplog.text) is (name != "qwen2")
    assert ("--tokenizer" in caplog.text) is (name != "qwen2")


def test_unused_ids_are_no_words(tmp_path: Path) -> None:
    table = byte_level_table()

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list([*BYTES, "ab", "PAD", "end"])
        writer.add_token_types([TokenType.NORMAL] * 257 + [TokenType.UNUSED, TokenType.CONTROL])
        writer.add_token_merges(["a b"])

    tokenizer = Backend.from_str(read(tmp_path, more).tokenizer_json)
    assert tokenizer.encode("PAD").ids == [table[letter] for letter in "PAD"]
    assert tokenizer.encode("end").ids == [258]


def sentencepiece_keys(writer: GGUFWriter, backend: Backend, scores: dict[str, float]) -> None:
    added = backend.get_added_tokens_decoder()
    vocabulary = sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    types = []
    for text, index in vocabulary:
        if text == "<unk>":
            types.append(TokenType.UNKNOWN)
        elif text.startswith("<0x"):
            types.append(TokenType.BYTE)
        elif index in added:
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_scores([scores.get(text, 0.0) for text, _ in vocabulary])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)


def test_a_sentencepiece_vocabulary_gives_the_ids_of_the_original(tmp_path: Path) -> None:
    original = prepend_and_fallback()
    # The converter takes scores from the model; in one of BPE they are the order of the merges.
    state = original.get_vocab(with_added_tokens=False)
    scores = {text: -float(index) for text, index in state.items()}

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        sentencepiece_keys(writer, original, scores)
        writer.add_bos_token_id(1)

    found = read(tmp_path, more)
    ours = Backend.from_str(found.tokenizer_json)
    ours.add_special_tokens(["<unk>"])
    for text in TEXTS:
        if "</tool_call>" not in text:  # its flags aren't in the file
            assert ours.encode(text).ids == original.encode(text).ids, repr(text)
    assert (found.config["add_bos_token"], found.config["bos_token"]) == (True, "<s>")


def test_a_unigram_vocabulary_gives_the_ids_of_the_original(tmp_path: Path) -> None:
    original = Backend(models.Unigram())
    original.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>", "<s>"])
    original.train_from_iterator([text for text in TEXTS if len(text) < 500], trainer)
    scores = dict(json.loads(original.to_str())["model"]["vocab"])

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("t5")
        sentencepiece_keys(writer, original, scores)

    found = read(tmp_path, more)
    ours = Backend.from_str(found.tokenizer_json)
    for text in TEXTS:
        if "<unk>" not in text and "\n" not in text:
            assert ours.encode(text).ids == original.encode(text).ids, repr(text)
    assert found.config["add_eos_token"] is True


def test_a_unigram_vocabulary_with_both_ends_joins_pairs_as_xlm_roberta(tmp_path: Path) -> None:
    original = Backend(models.Unigram())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    original.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=special)
    original.train_from_iterator([text for text in TEXTS if len(text) < 500], trainer)
    scores = dict(json.loads(original.to_str())["model"]["vocab"])
    original.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B:0 </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("t5")
        sentencepiece_keys(writer, original, scores)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    found = read(tmp_path, more)
    assert_pairs_are_joined_alike(tmp_path, found, original)


def assert_pairs_are_joined_alike(folder: Path, found: GgufTokenizer, original: Backend) -> None:
    (folder / "tokenizer.json").write_text(found.tokenizer_json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(found.config), encoding="utf-8")
    ours = Tokenizer.load(folder)
    one, other = "lorem ipsum dolor", "inner spaces"
    assert ours.encode(one, add_special_tokens=True) == original.encode(one).ids
    first, second = (ours.encode_part(text) for text in (one, other))
    ids, types = ours.join_pair(first.cut(len(first)), second.cut(len(second)))
    pair = original.encode(one, other)
    assert (ids, types) == (pair.ids, pair.type_ids)


def test_a_vocabulary_of_roberta_joins_pairs_as_it_does(tmp_path: Path) -> None:
    """Nothing stood between and around the texts of a pair."""
    original = byte_level("gpt-2")
    ids = original.get_vocab(with_added_tokens=True)
    ends = [(text, ids[text]) for text in ("<|im_start|>", "<|im_end|>")]
    original.post_processor = processors.RobertaProcessing(ends[1], ends[0])

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("roberta-bpe")
        add_vocabulary(writer, original)
        writer.add_bos_token_id(ends[0][1])
        writer.add_eos_token_id(ends[1][1])
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    assert_pairs_are_joined_alike(tmp_path, read(tmp_path, more), original)


@pytest.mark.parametrize(
    ("kind", "pre"), [("gemma4", None), ("gpt2", "gemma4"), ("gpt2", "granite-embed-multi-311m")]
)
def test_gemma_4s_vocabulary_gives_the_ids_of_the_original(
    tmp_path: Path, kind: str, pre: str | None
) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    original = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    original.normalizer = normalizers.Replace(" ", "▁")
    original.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    original.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    original.train_from_iterator(
        [text for text in TEXTS if len(text) < 500],
        BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=100),
    )
    original.add_tokens([AddedToken("<|tool_call>", normalized=False)])

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(kind)
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        add_vocabulary(writer, original)
        writer.add_unk_token_id(3)
        writer.add_bos_token_id(2)

    found = read(tmp_path, more)
    assert found.config["add_bos_token"] is True
    assert_same(Backend.from_str(found.tokenizer_json), original)


def test_a_whole_tokenizer_json_goes_before_the_lists(tmp_path: Path) -> None:
    original = byte_level("smollm")

    def more(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("made-up")
        add_vocabulary(writer, original)
        writer.add_string("tokenizer.huggingface.json", original.to_str())

    assert read(tmp_path, more).tokenizer_json == original.to_str()


def plain(writer: GGUFWriter, **wrong: Any) -> None:
    writer.add_tokenizer_model(wrong.get("model", "gpt2"))
    writer.add_tokenizer_pre(wrong.get("pre", "gpt-2"))
    writer.add_token_list(wrong.get("tokens", [*BYTES, "ab"]))
    writer.add_token_merges(wrong.get("merges", ["a b"]))
    if "types" in wrong:
        writer.add_array("tokenizer.ggml.token_type", wrong["types"])
    for name in ("eos_token_id", "bos_token_id"):
        if name in wrong:
            writer.add_uint32(f"tokenizer.ggml.{name}", wrong[name])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": "rwkv"}, "of kind 'rwkv' are not read.*--tokenizer"),
        ({"pre": "of tomorrow"}, "'of tomorrow' is not known here.*--tokenizer"),
        ({"merges": ["ab"]}, "merge 'ab' has no two parts"),
        ({"merges": ["a nowhere"]}, "cannot be loaded"),
        ({"types": [1, 2]}, "has not one type for each token"),
        ({"types": ["x"] * 257}, "has not one type for each token"),
        ({"eos_token_id": 257}, "eos_token_id' is 257, but there are 257 tokens"),
        ({"bos_token_id": 2**31}, "bos_token_id' is 2147483648"),
        ({"model": "llama"}, "scores' has not one score"),
    ],
)
def test_a_broken_vocabulary_is_refused_naming_the_key(
    tmp_path: Path, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(TokenizerLoadError, match=named) as caught:
        read(tmp_path, lambda writer: plain(writer, **wrong))
    assert "m.gguf" in str(caught.value)


def test_no_vocabulary_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(TokenizerLoadError, match="no tokenizer in the file.*--tokenizer"):
        read(tmp_path, lambda _: None)


def test_no_token_is_written_as_minus_one(tmp_path: Path) -> None:
    found = read(tmp_path, lambda writer: plain(writer, bos_token_id=2**32 - 1))
    assert found.config["bos_token"] is None


def test_templates_have_their_names(tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        plain(writer)
        writer.add_chat_template(
            [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
        )

    assert read(tmp_path, more).templates == {"default": "a", "tool_use": "b"}


@pytest.mark.parametrize("name", ["../../evil", "", "a/b", "x" * 65])
def test_a_templates_name_is_no_path(tmp_path: Path, name: str) -> None:
    def more(writer: GGUFWriter) -> None:
        plain(writer)
        writer.add_string(f"tokenizer.chat_template..{name}", "a")

    with pytest.raises(TokenizerLoadError, match="no chat template"):
        read(tmp_path, more)
