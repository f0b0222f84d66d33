"""Reads a SentencePiece `tokenizer.model` and makes the same tokenizer of parts of `tokenizers`.

The file is one protocol buffer (`ModelProto` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto). The few fields
that matter are read here, so that neither the library nor protobuf is needed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import Metaspace

from engine_worker.errors import TokenizerLoadError

MAX_FILE_BYTES: Final = 2**28
MAX_PIECE_CHARACTERS: Final = 512
"""Of an ordinary piece: SentencePiece's trainer takes no larger `max_sentencepiece_length`."""
_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_UNIGRAM, _BPE = 1, 2
_NEVER_CHOSEN: Final = -1e6
"""Score of pieces that no text spells, such as bytes, which are named `<0x41>`."""
_Field = tuple[int, int | bytes]
_FIRST_FIELD: Final = 0x0A
"""The first byte of a file that begins with a piece (field 1, length-delimited)."""


class PieceType(IntEnum):
    """What a piece is; `ModelProto.SentencePiece.Type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` says.

    Attributes:
        pieces: In the order of their ids.
        is_bpe: BPE, otherwise unigram.
        charsmap: The precompiled normalisation; may be empty.
        roles: Texts of its unknown, beginning, end and padding tokens, where it has them.
    """

    pieces: tuple[Piece, ...]
    is_bpe: bool
    byte_fallback: bool
    unk_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    roles: dict[str, Any]

    def backend(self, *, prefix_every_part: bool = True) -> Any:
        """The tokenizer.

        Control pieces become special tokens, pieces that the user defined other added tokens.

        Args:
            prefix_every_part: A model that puts a space before each text also puts one before
                each part between added tokens (`legacy` in transformers), otherwise only before
                the first.

        Returns:
            A `tokenizers.Tokenizer`.
        """
        backend = Backend(self._bpe() if self.is_bpe else self._unigram())
        steps: list[Any] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.remove_extra_whitespaces:
            # Only spaces: other white space is what the charsmap makes of it.
            steps += [
                normalizers.Replace(Regex(r"\A +| +\z"), ""),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        if self.add_dummy_prefix and prefix_every_part:
            steps.append(normalizers.Prepend(_SPACE if self.escape_whitespaces else " "))
        if self.escape_whitespaces:
            steps.append(normalizers.Replace(" ", _SPACE))
        if steps:
            backend.normalizer = normalizers.Sequence(steps)
        if self.add_dummy_prefix and not prefix_every_part:
            backend.pre_tokenizer = Metaspace(_SPACE, prepend_scheme="first", split=False)
        undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.add_dummy_prefix:
            undo.append(decoders.Strip(" ", 1, 0))
        backend.decoder = decoders.Sequence(undo)
        for kind, add in (
            (PieceType.CONTROL, backend.add_special_tokens),
            (PieceType.USER_DEFINED, backend.add_tokens),
        ):
            is_special = kind is PieceType.CONTROL
            texts = [piece.text for piece in self.pieces if piece.type == kind and piece.text]
            add([AddedToken(text, special=is_special, normalized=False) for text in texts])
        return backend

    def _unigram(self) -> Any:
        vocabulary = [
            (piece.text, piece.score if piece.type == PieceType.NORMAL else _NEVER_CHOSEN)
            for piece in self.pieces
        ]
        return models.Unigram(vocabulary, self.unk_id, self.byte_fallback)

    def _bpe(self) -> Any:
        """BPE whose merges are all pairs of pieces that make a piece, the best score first.

        Raises:
            TokenizerLoadError: A piece is longer than any trainer makes one. Each is cut at every
                place, which takes time by the square of its length.
        """
        ids = {piece.text: index for index, piece in enumerate(self.pieces)}
        normal = {
            piece.text: (-piece.score, index)
            for index, piece in enumerate(self.pieces)
            if piece.type == PieceType.NORMAL
        }
        longest = max(map(len, normal), default=0)
        if longest > MAX_PIECE_CHARACTERS:
            raise TokenizerLoadError(
                f"The SentencePiece vocabulary has a piece of {longest} characters; pieces of at"
                f" most {MAX_PIECE_CHARACTERS} are served."
            )
        ranked = [
            (rank, text[:cut], text[cut:])
            for text, rank in normal.items()
            for cut in range(1, len(text))
            if text[:cut] in normal and text[cut:] in normal
        ]
        return models.BPE(
            vocab=ids,
            merges=[(left, right) for _, left, right in sorted(ranked)],
            unk_token=self.pieces[self.unk_id].text,
            fuse_unk=True,
            byte_fallback=self.byte_fallback,
        )


def is_sentencepiece(path: Path) -> bool:
    """Whether a file looks like a SentencePiece model; some `tokenizer.model` are tiktoken's."""
    try:
        with path.open("rb") as stream:
            return stream.read(1) == bytes([_FIRST_FIELD])
    except OSError:
        return False


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        TokenizerLoadError: It is broken, or of a kind that is not served; names the file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerLoadError(f"{path} is larger than {MAX_FILE_BYTES} bytes.")
        return _parse(path.read_bytes(), path)
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        raise TokenizerLoadError(f"{path} is no readable SentencePiece model: {error}") from error


def _parse(data: bytes, path: Path) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(dict(_fields(value))))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    kind = _integer(trainer, 3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise TokenizerLoadError(
            f"{path}: SentencePiece models of type {kind} (words or characters) are not served;"
            " unigram and BPE models are."
        )
    if _integer(trainer, 24, 0):
        raise TokenizerLoadError(f"{path}: treat_whitespace_as_suffix is not served.")
    unk_id = next((i for i, piece in enumerate(pieces) if piece.type == PieceType.UNKNOWN), None)
    if unk_id is None:
        raise TokenizerLoadError(f"{path}: there is no unknown piece; the file is broken.")
    # Fields 40 to 43 are ids: of the unknown piece, beginning, end and padding.
    places = {
        "unk_token": unk_id,
        "bos_token": _integer(trainer, 41, 1),
        "eos_token": _integer(trainer, 42, 2),
        "pad_token": _integer(trainer, 43, -1),
    }
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_bpe=kind == _BPE,
        byte_fallback=bool(_integer(trainer, 35, 0)),
        unk_id=unk_id,
        charsmap=_bytes(normalizer, 2),
        add_dummy_prefix=bool(_integer(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_integer(normalizer, 4, 1)),
        escape_whitespaces=bool(_integer(normalizer, 5, 1)),
        roles={
            name: pieces[index].text for name, index in places.items() if 0 <= index < len(pieces)
        },
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    score = fields.get(2)
    return Piece(
        _bytes(fields, 1).decode(),
        struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0,
        _integer(fields, 3, PieceType.NORMAL),
    )


def _integer(fields: dict[int, int | bytes], number: int, default: int) -> int:
    """A varint as the signed 32-bit number that it stands for."""
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value - 2**64 if value >= 2**63 else value


def _bytes(fields: dict[int, int | bytes], number: int) -> bytes:
    value = fields.get(number, b"")
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} is no text")
    return value


def _fields(data: bytes) -> Iterator[_Field]:
    """Numbers and values of a message's fields: varints as numbers, all others as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place + size > len(data):
            raise ValueError("the file is cut off")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {place}")
