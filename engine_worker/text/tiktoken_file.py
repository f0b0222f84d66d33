"""Reads a tokenizer from tiktoken's files of ranks: a line has a token in base64 and its rank.

A pair of tokens is joined into the one of the lowest rank that there is, so a list of merges
follows from the ranks. What a file doesn't say is how a text is cut into words before that, and
which tokens are special: the model's own code has them. The first is known here for the classes in
`_CUTS`, the second stands in `tokenizer_config.json`.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from engine_worker.errors import TokenizerLoadError
from engine_worker.text.bounded_file import check_size
from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.gguf_pre_tokenizers import PRE_TOKENIZERS
from engine_worker.text.sentencepiece_model import is_sentencepiece

WAY_OUT: Final = "name a folder with the model's tokenizer.json by --tokenizer"
MAX_FILE_BYTES: Final = 16 * 2**20
"""Those of 200,000 tokens have 4 MB."""
MAX_TOKENS: Final = 2**20
MAX_TOKEN_BYTES: Final = 256
MAX_MERGES: Final = 8
"""For each token, on average; those of real files have two or three. All of them are kept as text,
so that a file of many would take a thousand times its size of memory."""
MAX_RESERVED: Final = 4096
_PLAIN_NAME: Final = "tokenizer.model"
_NAMES: Final = (_PLAIN_NAME, "tiktoken.model", "*.tiktoken")
_CUTS: Final = {
    # Moonlight and Kimi K2: `tokenization_moonshot.py`, `tokenization_kimi.py`.
    "TikTokenTokenizer": PRE_TOKENIZERS["kimi-k2"],
}
_PLAIN_CLASSES: Final = frozenset(
    {"", "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"}
)
"""Beside a `tokenizer.model` of ranks these mean Llama 3's, as in transformers."""


def find_tiktoken(folder: Path) -> Path | None:
    """A folder's file of ranks; None where it has none."""
    for name in _NAMES:
        for path in sorted(folder.glob(name)):
            if path.is_file() and not is_sentencepiece(path):
                return path
    return None


def read_tiktoken(
    path: Path, class_name: str, config: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Read a file of ranks.

    Args:
        path: Of the file.
        class_name: What `tokenizer_config.json` calls the tokenizer; empty when it doesn't.
        config: `tokenizer_config.json`.

    Returns:
        A `tokenizers.Tokenizer`, and the config with what the class adds to it.

    Raises:
        TokenizerLoadError: It is broken, or nothing here knows how its texts are cut into words;
            names the file and the way out.
    """
    try:
        check_size(path, MAX_FILE_BYTES)
        ranks = _parsed(path.read_bytes())
        bpe = _bpe(ranks)
    except (OSError, ValueError) as error:
        raise TokenizerLoadError(
            f"{path}: no readable file of tiktoken: {error}; download it again, or {WAY_OUT}"
        ) from error
    cuts = _CUTS.get(class_name)
    if cuts is None and path.name == _PLAIN_NAME and class_name in _PLAIN_CLASSES:
        cuts = PRE_TOKENIZERS["llama3"]
    if cuts is None:
        raise TokenizerLoadError(
            f"{path}: is of tiktoken's format, which doesn't say how texts are cut into words, and"
            f" for the class {class_name!r:.80} that isn't known here; {WAY_OUT}"
        )
    config = _without_gaps(config, len(ranks))
    _check_special(path, config, ranks)
    backend = Backend(bpe)
    backend.pre_tokenizer = cuts.splits()
    backend.decoder = decoders.ByteLevel()
    return backend, {"add_bos_token": cuts.adds_bos, **config}


def _parsed(data: bytes) -> dict[bytes, int]:
    """Ranks by the bytes of tokens, in their order.

    Raises:
        ValueError: A line is none, or tokens are missing or there twice.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            spelt, rank = line.split()
            token = base64.b64decode(spelt, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is no token and its rank") from None
        if not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise ValueError(f"line {number} has a token of {len(token)} bytes")
        if token in ranks or rank != str(len(ranks)).encode():
            raise ValueError(f"line {number} has not the token of rank {len(ranks)}")
        ranks[token] = len(ranks)
        if len(ranks) > MAX_TOKENS:
            raise ValueError(f"it has more than {MAX_TOKENS} tokens")
    if missing := sum(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(
            f"{missing} of the 256 bytes are no tokens in it: it is cut off, or broken"
        )
    return ranks


def _check_special(path: Path, config: Mapping[str, Any], ranks: Mapping[bytes, int]) -> None:
    """Refuses special tokens that can't be those of the model's own code.

    Raises:
        TokenizerLoadError: None is listed, or one that is can't get its id.
    """
    stated = config.get("added_tokens_decoder")
    special = {
        int(key): str(value.get("content"))
        for key, value in (stated if isinstance(stated, dict) else {}).items()
        if key.isdecimal() and len(key) < 10 and isinstance(value, dict)
        if int(key) >= len(ranks)
    }
    if not special:
        raise TokenizerLoadError(
            f"{path}: says nothing of special tokens, and neither does added_tokens_decoder in"
            f" tokenizer_config.json: no text would end; {WAY_OUT}"
        )
    taken = set(ranks)
    for number, content in special.items():
        spelt = content.encode("utf-8", "surrogatepass")
        if spelt in taken:
            raise TokenizerLoadError(
                f"{path}: the special token {content!r:.80}, in tokenizer_config.json with id"
                f" {number}, is another token already; {WAY_OUT}"
            )
        taken.add(spelt)


def _bpe(ranks: Mapping[bytes, int]) -> Any:
    by_byte = {byte: character for character, byte in byte_level_table().items()}
    spelt = {token: "".join(map(by_byte.__getitem__, token)) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in ranks:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        found.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spelt[left], spelt[right]) for left, right in found]
        if len(merges) > MAX_MERGES * len(ranks):
            raise ValueError(f"its tokens can be joined in more than {MAX_MERGES} ways each")
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
    # A word that is a token is one, whatever its merges make of it.
    return models.BPE(vocabulary, merges, ignore_merges=True)


def _without_gaps(config: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """The config with a token for each id between those that it lists, as the classes have them."""
    stated = config.get("added_tokens_decoder")
    if not isinstance(stated, dict):
        return dict(config)
    ids = {int(key) for key in stated if key.isdecimal() and len(key) < 10}
    last = max(ids, default=0)
    if not num_ranks <= last < num_ranks + MAX_RESERVED:
        return dict(config)
    reserved = {
        str(number): {"content": f"<|reserved_token_{number}|>", "special": True}
        for number in range(num_ranks, last)
        if number not in ids
    }
    return {**config, "added_tokens_decoder": {**stated, **reserved}}
