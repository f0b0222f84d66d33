"""Turns text into a model's token ids and back."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine_worker.errors import InvalidRequestError, TokenizerLoadError
from engine_worker.text.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    TokenBytes,
    WindowDetokenizer,
    parse_decoder,
)
from engine_worker.text.long_texts import LONG_BYTES, LongTexts
from engine_worker.text.token_length import max_token_bytes
from engine_worker.text.tokenizer_files import TokenizerFiles, eos_token_ids, read_tokenizer

# How many tokens the table of bytes is checked against the tokenizer with, when it is loaded.
_NUM_CHECKED_TOKENS = 512
# The tokenizer decodes one sequence without letting other threads run, a batch of one it does not:
# two million ids would stop every stream for a quarter of a second.
_MAX_TOKENS_UNDER_GIL = 1024
# Of a chat template; it travels with what the engine announces.
_MAX_TOLD_CHARACTERS = 2**18
_log = logging.getLogger("penstock.engine")


class EncodedText:
    """A text in tokens, without special ones: one of a pair that is joined later."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._encoding.ids)

    def cut(self, num_tokens: int) -> Any:
        """Its first tokens, for `Tokenizer.join_pair`; the text itself keeps all."""
        if num_tokens >= len(self):
            return self._encoding
        copied = type(self._encoding).merge([self._encoding], False)
        copied.truncate(num_tokens)
        return copied


class Tokenizer:
    """One model's tokenizer; safe to use from several threads.

    Args:
        files: What its files say; the backend belongs to this object from now on.
        eos_token_ids: Ids that end an output.
        missing_ends: What its folder names as an end, where it has none of these tokens.

    Attributes:
        num_tokens: Ids of the vocabulary, gaps included.
        max_token_characters: Of the longest token as the vocabulary spells it.
        max_token_bytes: No longer text, in UTF-8 bytes, becomes one token; 0 where any may.
        max_length: The longest text that the tokenizer was made for; None says nothing.
    """

    def __init__(
        self,
        files: TokenizerFiles,
        eos_token_ids: frozenset[int],
        missing_ends: tuple[str, ...] = (),
    ) -> None:
        self._files = files
        self._missing_ends = missing_ends
        self._backend = files.backend
        # Set once: switching them per call is what makes fast tokenizers unsafe among threads.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_token_ids = eos_token_ids
        self.max_length = files.max_length
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.num_tokens = max(vocabulary.values(), default=-1) + 1
        self.max_token_characters = max(map(len, vocabulary), default=1)
        self.max_token_bytes = max_token_bytes(self._backend)
        self._special_token_ids = {
            token.content: token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        self._all_special_token_ids = frozenset(self._special_token_ids.values())
        self._token_bytes = self._make_token_bytes()
        self._long_texts = LongTexts(self._backend.to_str)

    @classmethod
    def load(
        cls, folder: Path, model_folder: Path | None = None, vocab_size: int | None = None
    ) -> "Tokenizer":
        """Load a folder's tokenizer as `read_tokenizer` says; nothing is downloaded.

        Args:
            folder: Holds the tokenizer's files.
            model_folder: Holds `generation_config.json` and `config.json`, which may name more
                end-of-sequence ids; `folder` when None.
            vocab_size: How many ids the model has; an end of sequence that isn't one of them is
                left out, and so may be tokens that were added to the words of the tokenizer.

        Raises:
            TokenizerLoadError: The files are missing, broken, of a kind without a fast form, or of
                another model.
        """
        files = read_tokenizer(folder)
        num_words = files.backend.get_vocab_size(with_added_tokens=False)
        if vocab_size is not None and num_words > vocab_size:
            raise TokenizerLoadError(
                f"The tokenizer in {folder} has {num_words} words, but the model has {vocab_size}"
                " ids: it is another model's. Use the tokenizer of this one (--tokenizer FOLDER)."
            )
        ends = eos_token_ids(model_folder or folder, vocab_size)
        unknown = {end for end in ends.ids if files.backend.id_to_token(end) is None}
        if unknown:
            _log.warning(
                "%s: eos_token_id names %s, which the tokenizer doesn't have", folder, unknown
            )
        missing = [*ends.wrong, *(f"eos_token_id {end}" for end in sorted(unknown))]
        text = files.special_tokens.get("eos_token", "")
        stated = files.backend.token_to_id(text)
        if stated is not None and (vocab_size is None or stated < vocab_size):
            ends.ids.add(stated)
        elif text:
            missing.append(f"eos_token {text!r:.80}")
        is_known = not ends.ids <= unknown
        return cls(files, frozenset(ends.ids), () if is_known else tuple(missing))

    def require_end(self, folder: Path) -> None:
        """Says in the log that nothing names a token that ends an output, where that is so.

        Args:
            folder: Of the tokenizer.

        Raises:
            TokenizerLoadError: Some are named, and the tokenizer has none of them: it is another
                model's, or the names are wrong.
        """
        if self._missing_ends:
            raise TokenizerLoadError(
                f"The tokenizer in {folder} has none of the tokens that are to end an output:"
                f" {', '.join(self._missing_ends)}. Use the model's own tokenizer (--tokenizer"
                " FOLDER), or correct what names them."
            )
        if not self.eos_token_ids:
            _log.warning(
                "%s: nothing names a token that ends an output, so that answers go on until"
                " max_tokens or a stop sequence; name the model's own tokenizer by --tokenizer",
                folder,
            )

    def encode(
        self, text: str, *, add_special_tokens: bool, is_wanted: Callable[[], bool] | None = None
    ) -> list[int]:
        """Token ids of a text; other threads run meanwhile.

        Args:
            text: Of any length.
            add_special_tokens: Whether the tokenizer adds what begins and ends a text.
            is_wanted: Has a long text tokenised in a process that ends when it says no.

        Raises:
            InvalidRequestError: The text holds lone surrogates, which no UTF-8 can spell.
            AbandonedError: It is not wanted any more.
        """
        if is_wanted is not None and len(text) > LONG_BYTES:
            found = self._long_texts.encode(
                _utf8(text), add_special_tokens=add_special_tokens, is_wanted=is_wanted
            )
            if found is not None:
                return found
        (encoding,) = self._encode_batch([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoding.ids
        return token_ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts without special tokens; other threads run meanwhile.

        Raises:
            InvalidRequestError: A text holds lone surrogates.
        """
        return [encoding.ids for encoding in self._encode_batch(texts, add_special_tokens=False)]

    @property
    def num_pair_tokens(self) -> int:
        """How many special tokens join a pair of texts."""
        number: int = self._backend.num_special_tokens_to_add(True)
        return number

    def encode_part(self, text: str) -> EncodedText:
        """A text of a pair; other threads run meanwhile.

        Raises:
            InvalidRequestError: The text holds lone surrogates.
        """
        return EncodedText(self._encode_batch([text], add_special_tokens=False)[0])

    def join_pair(self, first: Any, second: Any) -> tuple[list[int], list[int]]:
        """Token ids and type ids of a pair, joined by the tokenizer's own template.

        Args:
            first: From `EncodedText.cut`, as the next one.
            second: The other one.
        """
        if self._backend.post_processor is None:
            return [*first.ids, *second.ids], [0] * len(first.ids) + [1] * len(second.ids)
        joined = self._backend.post_process(first, second, True)
        return joined.ids, joined.type_ids

    def _encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Any]:
        for text in texts:
            _utf8(text)
        # The batch form releases the GIL while it works, the single form does not.
        encodings: list[Any] = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return encodings

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence, exactly as the tokenizer's decoder has it."""
        text: str
        if len(token_ids) > _MAX_TOKENS_UNDER_GIL:
            (text,) = self._backend.decode_batch(
                [list(token_ids)], skip_special_tokens=skip_special_tokens
            )
        else:
            text = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def word_sequences(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The token sequences that spell some words, with and without a space before them.

        Args:
            words: Non-empty texts; spaces at their beginnings make no difference.

        Returns:
            Each sequence once.

        Raises:
            InvalidRequestError: A text holds lone surrogates.
        """
        texts: list[str] = []
        for word in words:
            stripped = word.lstrip(" ")
            texts.extend((stripped, f" {stripped}") if stripped else (word,))
        sequences = (
            tuple(encoding.ids) for encoding in self._encode_batch(texts, add_special_tokens=False)
        )
        return list(dict.fromkeys(sequence for sequence in sequences if sequence))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for by itself; none for ids without a token."""
        if self._token_bytes is None:
            return self.decode([token_id]).encode()
        return self._token_bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; U+FFFD where its bytes are a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        keep_special_tokens: Sequence[str] = (),
    ) -> Detokenizer:
        """A detokenizer for one output that continues a prompt.

        Args:
            prompt_token_ids: What the output follows; a tokenizer's rules for the beginning of a
                text apply only when nothing visible is in it.
            skip_special_tokens: Leave special tokens out of the text.
            keep_special_tokens: Texts of special tokens that stay in it nevertheless.
        """
        skip = self._all_special_token_ids if skip_special_tokens else frozenset[int]()
        kept = {self._special_token_ids.get(text) for text in keep_special_tokens}
        skip = skip - {token_id for token_id in kept if token_id is not None}
        if self._token_bytes is None:
            return WindowDetokenizer(self.decode, skip, prompt_token_ids)
        at_start = all(token_id in self._all_special_token_ids for token_id in prompt_token_ids)
        return ByteDetokenizer(self._token_bytes, skip, at_start=at_start)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return self._all_special_token_ids

    @property
    def unknown_token_id(self) -> int | None:
        """The id of what the vocabulary has no token for; None where everything has one."""
        unknown = getattr(self._backend.model, "unk_token", None)
        if unknown is None:
            unknown = self._files.special_tokens.get("unk_token", "")
        token_id: int | None = self._backend.token_to_id(unknown)
        return token_id

    def with_backend(self, backend: Any) -> "Tokenizer":
        """The same but for its backend, which belongs to the new object."""
        return Tokenizer(replace(self._files, backend=backend), self.eos_token_ids)

    def special_tokens_map(self) -> dict[str, Any]:
        """Names of special tokens (`bos_token`, …) with their texts, for chat templates."""
        return dict(self._files.special_tokens)

    def added_tokens(self) -> tuple[str, ...]:
        """Texts of the tokens beside the learned vocabulary, special ones and markers alike."""
        added = sorted(self._backend.get_added_tokens_decoder().items())
        return tuple(token.content for _, token in added)

    def added_token_ids(self) -> dict[str, int]:
        """Ids of the tokens of `added_tokens` by their text."""
        return {
            token.content: token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
        }

    def serialized(self) -> str:
        """The whole tokenizer as the JSON text of a `tokenizer.json`."""
        text: str = self._backend.to_str()
        return text

    def chat_template_source(self, *, has_tools: bool) -> str | None:
        """The Jinja source of the chat template, None when the tokenizer has none.

        Args:
            has_tools: Some models have a template of their own for requests with tools.
        """
        template = self._files.chat_template
        if isinstance(template, dict):
            name = "tool_use" if has_tools and "tool_use" in template else "default"
            template = template.get(name)
        return template if isinstance(template, str) and template.strip() else None

    def info(self) -> dict[str, Any]:
        """What clients that tokenise by themselves want to know, named as in vLLM.

        A template that is longer than anybody's is left out (null).
        """
        template = self.chat_template_source(has_tools=False)
        if template is not None and len(template) > _MAX_TOLD_CHARACTERS:
            template = None
        roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
        return {
            "tokenizer_class": self._files.class_name or "PreTrainedTokenizerFast",
            **roles,
            **self._files.special_tokens,
            "model_max_length": self.max_length,
            "chat_template": template,
        }

    def _make_token_bytes(self) -> TokenBytes | None:
        decoder = self._backend.decoder
        if decoder is None:
            return None
        table = TokenBytes.from_decoder(
            parse_decoder(decoder.__getstate__()), self._backend.id_to_token
        )
        if table is None:
            return None
        step = max(1, self.num_tokens // _NUM_CHECKED_TOKENS)
        sample = [
            token_id
            for token_id in range(0, self.num_tokens, step)
            if self._backend.id_to_token(token_id) is not None
        ]
        detokenizer = ByteDetokenizer(table, frozenset(), at_start=True)
        pieces = [detokenizer.push(token_id) for token_id in sample if table[token_id].isascii()]
        expected = self.decode([token_id for token_id in sample if table[token_id].isascii()])
        table.texts.special_token_ids = self._all_special_token_ids
        # A decoder that only looks like a known kind is left to the general form.
        return table if "".join(pieces) == expected else None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "The text holds a lone surrogate, which is no valid Unicode character."
        ) from error
