"""How the tokenizers of GGUF's `tokenizer.ggml.pre` cut text into words before BPE.

The file holds only a name. What it stands for is the pre-tokenizer (and normalizer) in the
`tokenizer.json` of the models that llama.cpp gives the name to; where llama.cpp itself writes a
pattern in another way because its engine of patterns can't do more, the original counts.
"""

import re
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
_CASED_LETTERS = (
    "B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A "
    "38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D "
    "1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC "
    "1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D "
    "2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B "
    "2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E "
    "AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB "
    "10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Letters of scripts with two cases, as DeepSeek lists them: code points and ranges of them."""


def _ranges(code_points: str) -> str:
    """`41-5A` as what stands for it between the brackets of a pattern."""
    return re.sub("([0-9A-F]+)", r"\\x{\1}", code_points).replace(" ", "")


_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[A-Za-z{_ranges(_CASED_LETTERS)}]+",
    rf"\s?[!-/:-~{_ranges('FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+",
    r"\s+$",
    rf"[{_ranges('4E00-9FA5 800-4E00 AC00-D7FF')}]+",
    r"\p{N}",
)
_MINICPM5 = (r"\p{N}{1,3}", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+"))
_TINY_AYA = (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT_4O)
_SEED = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HANGUL, _BOPOMOFO, _HAN_AND_KANA = "AC00-D7A3 3131-318E", "3105-312F", "4E00-9FA5 3040-30FF"
_WIDE_PUNCTUATION = "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F"
_EAST_ASIAN = (
    "4E00-9FFF 3400-4DBF F900-FAFF 3040-30FF FF65-FF9F 2F00-2FDF 0E40-0E7F 0E80-0EFF 1780-17FF "
    "1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
_YOUTU = (
    "|".join(
        f"[{_ranges(one)}]+" for one in (_HANGUL, _WIDE_PUNCTUATION, _BOPOMOFO, _HAN_AND_KANA)
    ),
    _GPT_4O.replace(r"\p{N}{1,3}", r"\p{N}"),
)
_HUNDREDS_OF_SPACES = "|".join(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))
_JAIS2 = _LLAMA3.replace(r"\s+(?!\S)|\s+", rf"{_HUNDREDS_OF_SPACES}|\s{{1,2}}(?!\S)|\s")
_AFMOE = (
    # Threes from the right, as in written numbers.
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    rf"[{_ranges(_EAST_ASIAN)}]+",
    _DEEPSEEK_V3[-1],
)
_EXAONE_MOE = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SPARK = (
    *_DEEPSEEK_V3[:2],
    _DEEPSEEK_V3[2].replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"),
    r"\p{N}",
)
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
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
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
            *("midm-2.0", "jina-v5-nano"),
        ),
        PreTokenizer((_LLAMA3,), whole_words=True, adds_bos=True),
    ),
    (("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
    (("qwen2", "deepseek-r1-qwen", "megrez", "f2llmv2"), PreTokenizer((_QWEN2,), is_nfc=True)),
    (
        ("hunyuan", "grok-2", "solar-open", "stablelm2", "kormo"),
        PreTokenizer((_QWEN2,)),
    ),
    (("ufakzeka",), PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTIONS}|"),))),
    (("laguna",), PreTokenizer((r"[^\n]+|\n+", _QWEN2))),
    (("qwen35",), PreTokenizer((_QWEN35,), is_nfc=True)),
    (("tekken",), PreTokenizer((_TEKKEN,), whole_words=True, adds_bos=True)),
    (("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"), PreTokenizer((_GPT_4O,))),
    (("youtu",), PreTokenizer(_YOUTU, whole_words=True)),
    (("jais-2",), PreTokenizer((_JAIS2,))),
    (("exaone-moe",), PreTokenizer((_EXAONE_MOE,))),
    (("bloom", "gpt3-finnish", "poro-chat"), PreTokenizer((_BLOOM,))),
    (("viking",), PreTokenizer((_BLOOM, r"\p{N}"))),
    (("superbpe",), PreTokenizer((r"\p{N}+", r"(?=(?:\d{3})+(?!\d))"))),
    (("afmoe",), PreTokenizer(_AFMOE)),
    (("chameleon",), PreTokenizer(_CHAMELEON, adds_bos=True)),
    (("spark2_5",), PreTokenizer(_SPARK)),
    (("tiny_aya", "cohere2moe"), PreTokenizer(_TINY_AYA)),
    (("minicpm5",), PreTokenizer(_MINICPM5, whole_words=True)),
    (("granite-embed-multi-97m",), PreTokenizer((_GPT_4O,), whole_words=True)),
    (("kimi-k2",), PreTokenizer((_MOONSHOT,), whole_words=True)),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), PreTokenizer(_DEEPSEEK_V3)),
    (("deepseek-llm",), PreTokenizer(_DEEPSEEK_LLM)),
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
            *("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code"),
            *("trillion", "granite-docling", "jais"),
        ),
        PreTokenizer(),
    ),
    (("olmo", "modern-bert"), PreTokenizer(is_nfc=True)),
    (("falcon", "default"), _Falcon()),
)
PRE_TOKENIZERS: Final = {name: meaning for names, meaning in _MEANINGS for name in names}
"""By the name in `tokenizer.ggml.pre`. Files older than the key stand under `default`."""

NOT_IN_BYTES: Final = frozenset({"gemma4", "granite-embed-multi-311m"})
"""Names of vocabularies whose tokens are plain text with visible spaces, as Gemma 4's, though their
kind is that of GPT-2's."""
