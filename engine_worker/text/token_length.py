"""How much text one token can stand for, where that is certain: what lengths say of counts."""

import json
from typing import Any, Final

from engine_worker.text.detokenizer import byte_level_bytes, byte_level_table

# Of the bytes that are written for one character in any of Unicode's normal forms, over the bytes
# of what comes out; counted over all of Unicode 15.
_NORMAL_FORMS: Final = {"NFC": 4, "NFD": 4, "NFKC": 4, "NFKD": 4}
_KEEPS_ALL: Final = ("ByteLevel", "Metaspace", "Digits")
_MAX_UTF8_BYTES: Final = 4


def max_token_bytes(backend: Any) -> int:
    """The longest text, in UTF-8 bytes, that may become one token; 0 where any length may.

    That is so where text can vanish or shrink without a bound on its way: white space that a
    pre-tokenizer leaves out, accents that a normalizer strips, runs of unknown characters that
    become one token.

    Args:
        backend: A `tokenizers.Tokenizer`.
    """
    normalizer = _state(backend.normalizer)
    factor = _shrinking(normalizer)
    pre_tokenizer = _state(backend.pre_tokenizer)
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    swallows_space = any(token.lstrip or token.rstrip for token in added.values())
    if not factor or swallows_space or not _keeps_all(pre_tokenizer):
        return 0
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    is_byte_level = any(
        part["type"] == "ByteLevel" for part in (*_parts(normalizer), *_parts(pre_tokenizer))
    )
    if is_byte_level:
        alphabet = set(byte_level_table())
    elif getattr(backend.model, "byte_fallback", False):
        alphabet = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        return 0
    if not alphabet <= vocabulary.keys():
        return 0
    longest = 0
    for token in vocabulary:
        if len(token) * _MAX_UTF8_BYTES > longest:
            # An added token is its own text, and SentencePiece's stand-in for a space can stand
            # for itself, which is longer.
            is_spelt = is_byte_level and token not in added
            piece = byte_level_bytes(token) if is_spelt else token.encode()
            longest = max(longest, len(piece))
    return longest * factor


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as `tokenizers` pickles it (JSON)."""
    return None if part is None else json.loads(part.__getstate__())


def _parts(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A sequence's parts, flat; something else by itself."""
    if state is None:
        return []
    if state["type"] != "Sequence":
        return [state]
    inner = state.get("normalizers") or state.get("pretokenizers") or []
    return [part for each in inner for part in _parts(each)]


def _shrinking(normalizer: dict[str, Any] | None) -> int:
    """How many times shorter a text may get; 0 without a bound that is known here."""
    factor = 1
    for part in _parts(normalizer):
        if part["type"] in _NORMAL_FORMS:
            factor *= _NORMAL_FORMS[part["type"]]
        elif part["type"] == "Replace":
            replaced = part["pattern"].get("String", "")
            if not replaced or len(part["content"].encode()) < len(replaced.encode()):
                return 0
        elif part["type"] not in ("Prepend", "ByteLevel"):
            return 0
    return factor


def _keeps_all(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether every character ends up in some token."""
    return all(
        part["type"] in _KEEPS_ALL
        or (part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed")
        for part in _parts(pre_tokenizer)
    )
