"""How the tokenizers of GGUF's `tokenizer.ggml.pre` cut text into words before BPE.

The file holds only a name. What it stands for is the pre-tokenizer (and normalizer) in the
`tokenizer.json` of the models that llama.cpp gives the name to; where llama.cpp itself writes a
pattern in another way because its engine of patterns can't do more, the original counts.
"""

from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Regex, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NOT_HAN = r"&&[^\p{Han}]]"
_MOONSHOT = _GPT_4O.replace(_UPPER, _UPPER[:-1] + _NOT_HAN).replace(_LOWER, _LOWER[:-1] + _NOT_HAN)
_MOONSHOT = r"[\p{Han}]+|" + _MOONSHOT.replace(r"[\r\n/]*", r"[\r\n]*")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SEED = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One name's meaning.

    Attributes:
        patterns: Texts are split at each in turn; what matches is a word, and so is what stands
            between. None splits as GPT-2 does.
        is_digits: Each digit is a word before that.
        is_nfc: Text is normalised to NFC.
        whole_words: A word that is a token is one token, whatever the merges make of it.
        adds_bos: A text begins with the beginning-of-sequence token where the file doesn't say.
    """

    patterns: tuple[str, ...] | None = None
    is_digits: bool = False
    is_nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def normalizer(self) -> Any:
        """What normalises text; None where nothing does."""
        return normalizers.NFC() if self.is_nfc else None

    def splits(self) -> Any:
        """What splits a text into words and spells them in bytes."""
        steps: list[Any] = [Digits(individual_digits=True)] if self.is_digits else []
        steps += [Split(Regex(pattern), "isolated") for pattern in self.patterns or ()]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=self.patterns is None))
        return Sequence(steps)


class _Falcon(PreTokenizer):
    def splits(self) -> Any:
        return Sequence(
            [
                Punctuation("contiguous"),
                ByteLevel(add_prefix_space=False),
                Digits(individual_digits=False),
                Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )


_MEANINGS: Final = (
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0"),
        PreTokenizer((_LLAMA3,), whole_words=True, adds_bos=True),
    ),
    (("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
    (("qwen2", "deepseek-r1-qwen", "megrez", "f2llmv2"), PreTokenizer((_QWEN2,), is_nfc=True)),
    (("hunyuan", "grok-2", "solar-open"), PreTokenizer((_QWEN2,))),
    (("qwen35",), PreTokenizer((_QWEN35,), is_nfc=True)),
    (("tekken",), PreTokenizer((_TEKKEN,), whole_words=True, adds_bos=True)),
    (("gpt-4o", "llama4", "kanana2", "minimax-m2"), PreTokenizer((_GPT_4O,))),
    (("granite-embed-multi-97m",), PreTokenizer((_GPT_4O,), whole_words=True)),
    (("kimi-k2",), PreTokenizer((_MOONSHOT,), whole_words=True)),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm"), PreTokenizer(_DEEPSEEK_V3)),
    (
        ("deepseek-coder",),
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    ),
    (("seed-coder",), PreTokenizer((_SEED,))),
    (("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))),
    (
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        PreTokenizer(is_digits=True),
    ),
    (("command-r",), PreTokenizer(is_digits=True, is_nfc=True)),
    (
        (
            *("gpt-2", "roberta-bpe", "phi-2", "mpt", "exaone4", "mellum", "gigachat", "a.x-4.0"),
            *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "trillion", "granite-docling"),
        ),
        PreTokenizer(),
    ),
    (("olmo", "modern-bert"), PreTokenizer(is_nfc=True)),
    (("falcon", "default"), _Falcon()),
)
PRE_TOKENIZERS: Final = {name: meaning for names, meaning in _MEANINGS for name in names}
"""By the name in `tokenizer.ggml.pre`. Files older than the key stand under `default`."""
