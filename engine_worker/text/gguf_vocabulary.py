"""Makes the files of a Hugging Face tokenizer of the vocabulary in a GGUF file's metadata.

`tokenizer.huggingface.json` is the whole `tokenizer.json` where a file has it. Otherwise the kind
(`tokenizer.ggml.model`), the tokens, their types, scores and merges stand in lists.
"""

import logging
import re
import reprlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from engine_worker.errors import TokenizerLoadError
from engine_worker.text.gguf_pre_tokenizers import NOT_IN_BYTES, PRE_TOKENIZERS, PreTokenizer
from engine_worker.text.sentencepiece_model import Piece, PieceType, SentencePieceModel
from engine_worker.text.tokenizer_files import guarded

MAX_TOKENS: Final = 2**20
_log = logging.getLogger("penstock.engine")
_KEYS: Final = "tokenizer.ggml."
_TEMPLATE: Final = "tokenizer.chat_template"
_WHOLE: Final = "tokenizer.huggingface.json"
_TEMPLATE_NAME: Final = re.compile("[A-Za-z0-9_-]{1,64}")
_NO_TOKEN: Final = 2**32 - 1
_UNNAMED: Final = "default"
"""The pre-tokenizer of files that name none, or were converted without knowing it."""
_ROBERTA: Final = "roberta-bpe"
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_GOES_ON: Final = "##"
_BRACKETED: Final = re.compile(r"\[(?:[A-Z]+|unused[0-9]+)\]")
"""Tokens that older files have as they are, without saying that they are control tokens."""
_CAPITAL: Final = re.compile("[A-Z]")
_ROLES: Final = {
    # Encoders have no beginning and end but these.
    "bos_token": ("bos_token_id", "cls_token_id"),
    "eos_token": ("eos_token_id", "seperator_token_id", "separator_token_id"),
    "unk_token": "unknown_token_id",
    "cls_token": "cls_token_id",
    # As llama.cpp spells it, then as it should be.
    "sep_token": ("seperator_token_id", "separator_token_id"),
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
_ENDS_BY_TEXT: Final = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "<EOT>", "<|END_OF_TURN_TOKEN|>"),
        *("<end_of_utterance>", "<｜end▁of▁sentence｜>", "<turn|>"),
    }
)
"""Control tokens that end an output in every model that has them."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """What the files of a tokenizer hold.

    Attributes:
        tokenizer_json: The text of `tokenizer.json`.
        config: `tokenizer_config.json`.
        eos_token_ids: Ids that end an output.
        templates: Chat templates by name; the usual one is `default`.
    """

    tokenizer_json: str
    config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    templates: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The lists of the metadata, checked."""

    path: Path
    values: Mapping[str, Any]
    tokens: Sequence[str]
    types: Sequence[int]

    def get(self, name: str, kind: type, default: Any) -> Any:
        value = self.values.get(_KEYS + name, default)
        if value is not default and type(value) is not kind:
            raise TokenizerLoadError(
                f"{self.path}: key '{_KEYS}{name}' is {reprlib.repr(value):.40}"
            )
        return value

    def token_id(self, *names: str) -> int | None:
        """The id under the first of some keys that is there; None for none."""
        for name in names:
            value = self.get(name, int, None)
            if value is None or value == _NO_TOKEN:
                continue
            if not 0 <= value < len(self.tokens):
                raise TokenizerLoadError(
                    f"{self.path}: key '{_KEYS}{name}' is {value}, but there are"
                    f" {len(self.tokens)} tokens"
                )
            return int(value)
        return None

    def of_type(self, *types: int) -> list[tuple[int, str]]:
        """Ids and texts of the tokens of some types."""
        pairs = enumerate(zip(self.tokens, self.types, strict=True))
        return [(index, text) for index, (text, kind) in pairs if kind in types]


def read_gguf_tokenizer(values: Mapping[str, Any], path: Path) -> GgufTokenizer:
    """Read a tokenizer out of a model's metadata.

    Args:
        values: The metadata.
        path: Of the file, for messages.

    Raises:
        TokenizerLoadError: It is broken, or of a kind that isn't read; names the file and a way
            out.
    """
    vocabulary = _vocabulary(values, path)
    kind = vocabulary.get("model", str, "")
    if isinstance(whole := values.get(_WHOLE), str):
        tokenizer_json, adds = whole, (False, False)
    elif kind in _KINDS:
        tokenizer_json, adds = guarded(path, lambda: _serialized(vocabulary, kind))
    else:
        raise TokenizerLoadError(
            f"{path}: tokenizers of kind {kind!r:.40} are not read ({', '.join(_KINDS)} are);"
            " name a folder with the model's tokenizer.json by --tokenizer"
        )
    ids = {
        role: vocabulary.token_id(*((keys,) if isinstance(keys, str) else keys))
        for role, keys in _ROLES.items()
    }
    roles = {
        role: None if index is None else vocabulary.tokens[index] for role, index in ids.items()
    }
    config: dict[str, Any] = {
        **roles,
        "add_bos_token": vocabulary.get("add_bos_token", bool, adds[0]),
        "add_eos_token": vocabulary.get("add_eos_token", bool, adds[1]),
    }
    return GgufTokenizer(
        tokenizer_json, config, tuple(_ends(vocabulary)), dict(_templates(values, path))
    )


def _serialized(vocabulary: _Vocabulary, kind: str) -> tuple[str, tuple[bool, bool]]:
    backend, adds = _KINDS[kind](vocabulary)
    if kind in _BYTE_KINDS:
        _add_tokens(backend, vocabulary)
    return backend.to_str(), adds


def _vocabulary(values: Mapping[str, Any], path: Path) -> _Vocabulary:
    tokens = values.get(f"{_KEYS}tokens")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= MAX_TOKENS:
        raise TokenizerLoadError(
            f"{path}: there is no tokenizer in the file (a list '{_KEYS}tokens'); name a folder"
            " with the model's tokenizer.json by --tokenizer"
        )
    types: Sequence[int] | None = values.get(f"{_KEYS}token_type")
    if types is None:
        types = [PieceType.NORMAL] * len(tokens)
    elif not isinstance(types, array) or types.typecode in "fd" or len(types) != len(tokens):
        raise TokenizerLoadError(f"{path}: key '{_KEYS}token_type' has not one type for each token")
    return _Vocabulary(path, values, tokens, types)


def _ends(vocabulary: _Vocabulary) -> Iterator[int]:
    """Each id that ends an output, once; the end of a turn first."""
    found = [vocabulary.token_id(name) for name in _ENDS]
    control = vocabulary.of_type(PieceType.CONTROL)
    found += [index for index, text in control if text in _ENDS_BY_TEXT]
    yield from dict.fromkeys(index for index in found if index is not None)


def _templates(values: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    for key, text in values.items():
        if not key.startswith(_TEMPLATE) or key.startswith(f"{_TEMPLATE}s"):
            continue
        name = key.removeprefix(_TEMPLATE).removeprefix(".") or "default"
        if not isinstance(text, str) or _TEMPLATE_NAME.fullmatch(name) is None:
            raise TokenizerLoadError(f"{path}: key {key!r:.80} is no chat template")
        yield name, text


def _bpe(vocabulary: _Vocabulary) -> tuple[Any, tuple[bool, bool]]:
    """Bytes spelt as characters, as in GPT-2's tokenizer."""
    name = vocabulary.get("pre", str, _UNNAMED)
    if name == _UNNAMED:
        _log.warning(
            "%s names no pre-tokenizer. Text is cut into words as llama.cpp does it then, which is"
            " not how most models learned it and makes their answers worse; name a folder with the"
            " model's tokenizer.json by --tokenizer, or take a newer file",
            vocabulary.path,
        )
    if name in NOT_IN_BYTES:
        return _spaced_bpe(vocabulary)
    meaning = PRE_TOKENIZERS.get(name)
    if meaning is None:
        raise TokenizerLoadError(
            f"{vocabulary.path}: the tokenizer's pre-tokenizer {name!r:.40} is not known here; name"
            " a folder with the model's tokenizer.json by --tokenizer"
        )
    backend = Backend(_bpe_model(vocabulary, meaning))
    normalizer = meaning.normalizer()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = meaning.splits()
    backend.decoder = decoders.ByteLevel()
    if name == _ROBERTA:
        _join_as_roberta(backend, vocabulary)
    return backend, (meaning.adds_bos, False)


def _bpe_model(vocabulary: _Vocabulary, meaning: PreTokenizer) -> Any:
    # Unused tokens fill gaps of ids; the original vocabulary doesn't have them.
    ids = {
        text: index
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != PieceType.UNUSED
    }
    return models.BPE(ids, _merges(vocabulary), ignore_merges=meaning.whole_words)


def _merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    merges = vocabulary.values.get(f"{_KEYS}merges")
    if not isinstance(merges, list):
        raise TokenizerLoadError(f"{vocabulary.path}: key '{_KEYS}merges' is missing")
    found = []
    for merge in merges:
        # Nothing but a whole token of a space could begin with one.
        cut = merge.find(" ", 1)
        if cut < 0:
            raise TokenizerLoadError(f"{vocabulary.path}: merge {merge!r:.80} has no two parts")
        found.append((merge[:cut], merge[cut + 1 :]))
    return found


def _spaced_bpe(vocabulary: _Vocabulary) -> tuple[Any, tuple[bool, bool]]:
    """Gemma 4's: merges over plain text whose spaces are visible, bytes where it has no token."""
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    unknown = vocabulary.token_id("unknown_token_id")
    backend = Backend(
        models.BPE(
            ids,
            _merges(vocabulary),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend, (True, False)


def _sentencepiece(vocabulary: _Vocabulary, *, is_bpe: bool) -> Any:
    scores = vocabulary.values.get(f"{_KEYS}scores")
    if not isinstance(scores, array) or len(scores) != len(vocabulary.tokens):
        raise TokenizerLoadError(
            f"{vocabulary.path}: key '{_KEYS}scores' has not one score for each token"
        )
    pieces = tuple(
        Piece(text, float(score), kind)
        for text, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    )
    unknown = vocabulary.token_id("unknown_token_id")
    if unknown is None:
        kinds = enumerate(vocabulary.types)
        unknown = next((index for index, kind in kinds if kind == PieceType.UNKNOWN), 0)
    charsmap = vocabulary.get("precompiled_charsmap", array, array("B"))
    model = SentencePieceModel(
        pieces=pieces,
        is_bpe=is_bpe,
        byte_fallback=PieceType.BYTE in vocabulary.types,
        unk_id=unknown,
        charsmap=charsmap.tobytes(),
        add_dummy_prefix=vocabulary.get("add_space_prefix", bool, True),
        remove_extra_whitespaces=vocabulary.get("remove_extra_whitespaces", bool, False),
        escape_whitespaces=True,
        roles={},
    )
    return model.backend()


def _llama(vocabulary: _Vocabulary) -> tuple[Any, tuple[bool, bool]]:
    return _sentencepiece(vocabulary, is_bpe=True), (True, False)


def _join_as_roberta(backend: Any, vocabulary: _Vocabulary) -> None:
    """Texts, and pairs of them, as RoBERTa and XLM-RoBERTa begin and end them."""
    begin, end = (vocabulary.token_id(f"{name}_token_id") for name in ("bos", "eos"))
    adds = [vocabulary.get(f"add_{name}_token", bool, False) for name in ("bos", "eos")]
    if all(adds) and begin is not None and end is not None:
        first, last = vocabulary.tokens[begin], vocabulary.tokens[end]
        backend.post_processor = processors.TemplateProcessing(
            single=[first, "$A", last],
            pair=[first, "$A", last, last, "$B:0", last],
            special_tokens=[(first, begin), (last, end)],
        )


def _unigram(vocabulary: _Vocabulary) -> tuple[Any, tuple[bool, bool]]:
    backend = _sentencepiece(vocabulary, is_bpe=False)
    _join_as_roberta(backend, vocabulary)
    return backend, (False, True)


def _word_pieces(vocabulary: _Vocabulary) -> tuple[Any, tuple[bool, bool]]:
    """BERT's: in the file words begin with a visible space, and what goes on with one doesn't."""
    ids: dict[str, int] = {}
    for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == PieceType.UNUSED:
            continue
        is_whole = kind in (PieceType.CONTROL, PieceType.UNKNOWN) or _BRACKETED.fullmatch(text)
        if not is_whole:
            goes_on = not text.startswith(_SPACE)
            text = f"{_GOES_ON}{text}" if goes_on else text.removeprefix(_SPACE)
        ids[text] = index
    unknown, begin, end = (
        vocabulary.tokens[index] if index is not None else default
        for index, default in (
            (vocabulary.token_id("unknown_token_id"), "[UNK]"),
            (vocabulary.token_id("cls_token_id", "bos_token_id"), "[CLS]"),
            (vocabulary.token_id(*_ROLES["sep_token"], "eos_token_id"), "[SEP]"),
        )
    )
    missing = next((text for text in (unknown, begin, end) if text not in ids), None)
    if missing is not None:
        raise TokenizerLoadError(f"{vocabulary.path}: the tokenizer has no token {missing!r:.80}")
    backend = Backend(models.WordPiece(ids, unk_token=unknown))
    # The file doesn't say whether it tells letters of both cases apart; its words do.
    has_case = any(_CAPITAL.search(text) for text in ids if _BRACKETED.fullmatch(text) is None)
    backend.normalizer = normalizers.BertNormalizer(lowercase=not has_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, "$B:1", f"{end}:1"],
        special_tokens=[(begin, ids[begin]), (end, ids[end])],
    )
    return backend, (True, True)


_KINDS: Final[dict[str, Callable[[_Vocabulary], tuple[Any, tuple[bool, bool]]]]] = {
    "gpt2": _bpe,
    "llama": _llama,
    "gemma4": _spaced_bpe,
    "t5": _unigram,
    "bert": _word_pieces,
}
"""From a vocabulary to its tokenizer, and whether texts get bos and eos by default."""


_BYTE_KINDS: Final = ("gpt2", "gemma4", "bert")
"""Those whose added tokens aren't `SentencePieceModel`'s to add."""


def _add_tokens(backend: Any, vocabulary: _Vocabulary) -> None:
    """Make control tokens special and those that the model's user defined tokens of their own."""
    for types, is_special in (
        ((PieceType.CONTROL, PieceType.UNKNOWN), True),
        ((PieceType.USER_DEFINED,), False),
    ):
        found = vocabulary.of_type(*types)
        # Some have another text than in the file.
        texts = [backend.id_to_token(index) or text for index, text in found]
        tokens = [AddedToken(text, special=is_special, normalized=False) for text in texts]
        (backend.add_special_tokens if is_special else backend.add_tokens)(tokens)
