"""Small tokenizers, built in memory in the two styles that matter."""

from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer

from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import TokenizerFiles

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
PLAIN_ADDED_TOKENS = ("<tool_call>", "</tool_call>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer(chat_template: Any = CHATML) -> Tokenizer:
    """Every byte is a token (id = byte), a few merges, then the added tokens.

    Ids: 0–255 the bytes, 256 ` t`, 257 `he`, 258 ` the`, then `SPECIAL_TOKENS` and
    `PLAIN_ADDED_TOKENS`. End of sequence is `<|im_end|>`.
    """
    vocabulary = byte_level_table()
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = BackendTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend, chat_template)


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's kind: `▁` for spaces, byte fallback, one leading space dropped."""
    vocabulary = {"<unk>": 0}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in ("▁", "▁Hello", "▁world", "Hello", "ing", "!", "é", "▁a", "▁▁", "."):
        vocabulary[piece] = len(vocabulary)
    backend = BackendTokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrap(backend, None)


def metaspace_tokenizer() -> Tokenizer:
    """T5's kind: `▁` for spaces without byte fallback."""
    pieces = ("<unk>", "▁", "▁Hello", "▁world", "Hello", "ing", "!", "é", "▁a")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = BackendTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    return _wrap(backend, None)


def wordpiece_tokenizer() -> Tokenizer:
    """A decoder of a kind that has no table of bytes."""
    pieces = ("[UNK]", "hello", "world", "##ing", "##s", "!", "a")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = BackendTokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return _wrap(backend, None)


def _wrap(backend: BackendTokenizer, chat_template: Any) -> Tokenizer:
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(text, special=False) for text in PLAIN_ADDED_TOKENS])
    files = TokenizerFiles(backend, {"eos_token": "<|im_end|>"}, chat_template)
    eos_token_id = backend.token_to_id("<|im_end|>")
    assert eos_token_id is not None
    return Tokenizer(files, frozenset({eos_token_id}))
