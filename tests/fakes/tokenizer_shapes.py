"""Tokenizers in the shapes of well-known models, trained on a few texts, and texts of every
kind."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from engine_worker.text.detokenizer import byte_level_table

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
