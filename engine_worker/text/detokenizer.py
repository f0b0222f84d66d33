"""Turns output token ids into text as they come, never splitting a character.

Two forms. Tokenizers whose decoder maps each token to bytes (byte-level BPE, SentencePiece with or
without byte fallback) are decoded from a table of bytes per token and an incremental UTF-8
decoder. Any other tokenizer is asked to decode a short window of tokens, before and after the new
one, and the difference is the new text.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Nobody's character takes more tokens than this; a window that is longer holds broken bytes.
_MAX_WINDOW_TOKENS = 16


class Detokenizer(Protocol):
    """The text of one output, from its tokens one at a time."""

    def push(self, token_id: int) -> str:
        """The text that the token completes; an unfinished character waits for its other bytes."""

    def finish(self) -> str:
        """The end of the text: bytes that never became a character, as U+FFFD."""

    @property
    def is_whole(self) -> bool:
        """Whether no character waits for its other bytes."""

    @property
    def texts(self) -> Mapping[int, str] | None:
        """What `push` would give for tokens whose text depends on no other one, "" for the rest.

        None where all do. It holds however many of these tokens follow, pushed or not.
        """


class LeadingSpace(Enum):
    """What the tokenizer's decoder does at the very beginning of a text."""

    KEPT = "kept"
    ONE_DROPPED = "one_dropped"
    DROPPED_IN_FIRST_TOKEN = "dropped_in_first_token"  # noqa: S105 - a rule, no password


class TokenBytes:
    """The bytes that each token stands for, looked up once per token.

    Args:
        id_to_token: The vocabulary; None for ids without a token.
        to_bytes: What the decoder makes of one token.
        leading_space: What it does with the first one.

    Attributes:
        texts: Of the tokens that are whole characters.
    """

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        to_bytes: Callable[[str], bytes],
        leading_space: LeadingSpace,
    ) -> None:
        self._id_to_token = id_to_token
        self._to_bytes = to_bytes
        self._bytes: dict[int, bytes] = {}
        self.leading_space = leading_space
        self.texts = TokenTexts(self)

    def __getitem__(self, token_id: int) -> bytes:
        piece = self._bytes.get(token_id)
        if piece is None:
            token = self._id_to_token(token_id)
            piece = b"" if token is None else self._to_bytes(token)
            self._bytes[token_id] = piece
        return piece

    @classmethod
    def from_decoder(
        cls, decoder: dict[str, Any] | None, id_to_token: Callable[[int], str | None]
    ) -> "TokenBytes | None":
        """The table for a decoder of `tokenizer.json`, None when it isn't of a known kind."""
        parts = (decoder or {}).get("decoders") or ([decoder] if decoder else [])
        kinds = [part["type"] for part in parts]
        if kinds == ["ByteLevel"]:
            return cls(id_to_token, byte_level_bytes, LeadingSpace.KEPT)
        if kinds == ["Metaspace"] and parts[0]["replacement"] == _SENTENCEPIECE_SPACE:
            keeps = parts[0].get("prepend_scheme") == "never"
            leading = LeadingSpace.KEPT if keeps else LeadingSpace.DROPPED_IN_FIRST_TOKEN
            return cls(id_to_token, _sentencepiece_text_bytes, leading)
        if kinds[:3] == ["Replace", "ByteFallback", "Fuse"]:
            replaces_space = parts[0] == {
                "type": "Replace",
                "pattern": {"String": _SENTENCEPIECE_SPACE},
                "content": " ",
            }
            one_space = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            if replaces_space and parts[3:] == []:
                return cls(id_to_token, _sentencepiece_bytes, LeadingSpace.KEPT)
            if replaces_space and parts[3:] == [one_space]:
                return cls(id_to_token, _sentencepiece_bytes, LeadingSpace.ONE_DROPPED)
        return None


class TokenTexts(dict[int, str]):
    """The text of each token that is whole characters, made when it is asked for; "" of others.

    Args:
        token_bytes: The bytes of each.

    Attributes:
        special_token_ids: Tokens whose text isn't always shown, none of which is here.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        super().__init__()
        self._token_bytes = token_bytes
        self.special_token_ids = frozenset[int]()

    def __missing__(self, token_id: int) -> str:
        text = ""
        if token_id not in self.special_token_ids:
            with suppress(UnicodeDecodeError):
                text = self._token_bytes[token_id].decode()
        self[token_id] = text
        return text


class ByteDetokenizer:
    """Decodes from a table of bytes per token.

    The text equals the tokenizer's `decode` of the whole, with one exception: where a
    SentencePiece tokenizer falls back to bytes and these are no UTF-8, `decode` replaces every
    byte of the run, while here the run's valid characters were already sent and stay.

    Args:
        token_bytes: The table.
        skip_token_ids: Tokens that leave no text.
        at_start: Whether nothing visible precedes the output, so that the tokenizer's rule for the
            beginning of a text applies.
    """

    def __init__(
        self, token_bytes: TokenBytes, skip_token_ids: frozenset[int], *, at_start: bool
    ) -> None:
        self._token_bytes = token_bytes
        self._skip_token_ids = skip_token_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._leading_space = token_bytes.leading_space if at_start else LeadingSpace.KEPT

    def push(self, token_id: int) -> str:
        if token_id in self._skip_token_ids:
            return ""
        piece = self._token_bytes[token_id]
        if self._leading_space is LeadingSpace.DROPPED_IN_FIRST_TOKEN:
            piece = piece.replace(b" ", b"")
            self._leading_space = LeadingSpace.KEPT
        elif self._leading_space is LeadingSpace.ONE_DROPPED and piece:
            piece = piece.removeprefix(b" ")
            self._leading_space = LeadingSpace.KEPT
        return self._decoder.decode(piece)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    @property
    def is_whole(self) -> bool:
        return not self._decoder.getstate()[0]

    @property
    def texts(self) -> Mapping[int, str] | None:
        is_free = self.is_whole and self._leading_space is LeadingSpace.KEPT
        return self._token_bytes.texts if is_free else None


class WindowDetokenizer:
    """Decodes windows of tokens with the tokenizer itself; for decoders of unknown kind.

    The window starts a few tokens before the new ones, so that rules about neighbours (spaces,
    prefixes) see them; its length is bounded, so that the work is linear in the output.

    Args:
        decode: Decodes token ids to text, special tokens included.
        skip_token_ids: Tokens that leave no text.
        context: The last tokens before the output.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        skip_token_ids: frozenset[int],
        context: Sequence[int],
    ) -> None:
        self._decode = decode
        self._skip_token_ids = skip_token_ids
        self._window = [token_id for token_id in context if token_id not in skip_token_ids]
        self._window = self._window[-_MAX_WINDOW_TOKENS // 2 :]
        self._num_read = len(self._window)

    def push(self, token_id: int) -> str:
        if token_id in self._skip_token_ids:
            return ""
        self._window.append(token_id)
        num_waiting = len(self._window) - self._num_read
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and num_waiting < _MAX_WINDOW_TOKENS // 2:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        return self._advance(self._new_text())

    @property
    def is_whole(self) -> bool:
        return self._num_read == len(self._window)

    @property
    def texts(self) -> None:
        return None

    def _new_text(self) -> str:
        read = self._decode(self._window[: self._num_read])
        return self._decode(self._window)[len(read) :]

    def _advance(self, text: str) -> str:
        # What was just read becomes the context of what comes next.
        self._window = self._window[self._num_read :] or self._window
        self._num_read = len(self._window)
        return text


def parse_decoder(state: bytes | str) -> dict[str, Any]:
    """The decoder section of a `tokenizer.json`, as `tokenizers` pickles it (JSON)."""
    decoder = json.loads(state)
    assert isinstance(decoder, dict)
    return decoder


def byte_level_table() -> dict[str, int]:
    """Printable stand-ins of byte-level vocabularies to bytes (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_LEVEL = byte_level_table()


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for."""
    try:
        return bytes([_BYTE_LEVEL[character] for character in token])
    except KeyError:
        # An added token whose text isn't spelt in stand-ins is its own text.
        return token.encode()


def _sentencepiece_text_bytes(token: str) -> bytes:
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode()


def _sentencepiece_bytes(token: str) -> bytes:
    match = BYTE_TOKEN.fullmatch(token)
    if match is not None:
        return bytes([int(match[1], 16)])
    return _sentencepiece_text_bytes(token)
