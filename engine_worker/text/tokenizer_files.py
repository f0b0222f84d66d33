"""Reads a tokenizer from the files of a model folder.

`tokenizer.json` itself decides how text becomes tokens: it is loaded by `tokenizers` as it is,
whatever class `tokenizer_config.json` names, because classes put normalizers and pre-tokenizers
of their own in its place. From `tokenizer_config.json` come the roles of tokens, the chat template
and tokens that were added to the vocabulary without being written into `tokenizer.json`.

Without `tokenizer.json`, a SentencePiece `tokenizer.model` or a file of tiktoken is read; other
forms (`vocab.json` with `merges.txt`, `tekken.json`, …) are converted by transformers.
"""

import inspect
import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.processors import Sequence as PostProcessors
from tokenizers.processors import TemplateProcessing

from engine_worker.errors import TokenizerLoadError
from engine_worker.text.bounded_file import MAX_TOKENIZER_BYTES, check_size, read_bounded
from engine_worker.text.generation_config import GENERATION_CONFIG, read_generation_config
from engine_worker.text.sentencepiece_model import is_sentencepiece, read_sentencepiece
from engine_worker.text.tiktoken_file import WAY_OUT, find_tiktoken, read_tiktoken

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_MODEL: Final = "tokenizer.model"
TEKKEN_JSON: Final = "tekken.json"
MAX_IDS: Final = 2**24
_CONFIG: Final = "tokenizer_config.json"
_MODEL_CONFIG: Final = "config.json"
_PROCESSOR_TEMPLATE: Final = "chat_template.json"
_CONVERTED: Final = ("*vocab*", "merges.txt", "*.model", "*.spm", TEKKEN_JSON)
"""Names of files that a tokenizer may be made of."""
_ROLES: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Mistral's own format has these in every file, and its own library begins each text with the first.
_TEKKEN_ROLES: Final = {"bos_token": "<s>", "eos_token": "</s>"}
# Classes in transformers that put `<s>` before, or `</s>` after, each text by default.
_BEGINS_WITH_BOS: Final = frozenset(
    {
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "CodeLlamaTokenizer",
        "CodeLlamaTokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
    }
)
_ENDS_WITH_EOS: Final = frozenset({"T5Tokenizer", "T5TokenizerFast", "PegasusTokenizer"})
# Classes for any tokenizer, which know no tokens of their own.
_WITHOUT_ROLES: Final = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized")
_MAX_STATED_LENGTH: Final = 10**9
_LISTS: Final = ("additional_special_tokens", "extra_special_tokens")

_log = logging.getLogger("penstock.engine")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder's files say.

    Attributes:
        backend: A `tokenizers.Tokenizer`.
        special_tokens: Roles (`bos_token` …) with the text of their tokens, and
            `additional_special_tokens` with a list of texts.
        chat_template: One Jinja source, or several by name; None when there is none.
        class_name: What `tokenizer_config.json` calls the tokenizer; empty when it doesn't.
        max_length: The longest text that the tokenizer was made for, tokens; None says nothing.
    """

    backend: Any
    special_tokens: dict[str, Any]
    chat_template: str | dict[str, str] | None
    class_name: str = ""
    max_length: int | None = None


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read the tokenizer of a folder; nothing is downloaded and no code of it is run.

    Raises:
        TokenizerLoadError: The files are missing, broken, or of a kind without a fast form.
    """
    if not folder.is_dir():
        raise TokenizerLoadError(f"There is no tokenizer folder {folder}.")
    config = _read_object(folder / _CONFIG)
    class_name = config.get("tokenizer_class")
    class_name = class_name if isinstance(class_name, str) else ""
    roles = _roles(config, _read_object(folder / "special_tokens_map.json"))
    if (folder / TOKENIZER_JSON).is_file():
        backend = guarded(folder, lambda: _from_file(folder / TOKENIZER_JSON))
    elif is_sentencepiece(folder / TOKENIZER_MODEL):
        model = read_sentencepiece(folder / TOKENIZER_MODEL)
        is_legacy = config.get("legacy") is not False
        backend = guarded(folder, lambda: model.backend(prefix_every_part=is_legacy))
        roles = {**model.roles, **roles}
        # What SentencePiece models are trained with; a config that says otherwise is followed.
        config = {"add_bos_token": class_name in _BEGINS_WITH_BOS, **config}
        config = {"add_eos_token": class_name in _ENDS_WITH_EOS, **config}
    elif (ranks := _tiktoken_of(folder)) is not None:
        backend, config = guarded(folder, lambda: read_tiktoken(ranks, class_name, config))
    else:
        backend, class_roles = _converted(folder)
        roles = {**class_roles, **roles}
        if (folder / TEKKEN_JSON).is_file():
            roles = {**_TEKKEN_ROLES, **roles}
            config = {"add_bos_token": True, **config}
    _check_words(folder, backend)
    _add_missing_tokens(folder, backend, config, roles)
    if class_name:
        roles = {**_class_roles(class_name, config, backend), **roles}
    _add_ends(backend, config, roles)
    for role in ("bos_token", "eos_token"):
        if role in roles and backend.token_to_id(roles[role]) is None:
            _log.warning(
                "%s: %s is %.80r, which is none of the tokenizer's tokens; it is left out",
                folder,
                role,
                roles[role],
            )
    return TokenizerFiles(
        backend, roles, _chat_template(folder, config), class_name, _max_length(config)
    )


@dataclass(frozen=True, slots=True)
class NamedEnds:
    """What a model's folder says of the ids that end an output.

    Attributes:
        ids: Those that the model has.
        wrong: What is no id of the model, each with the file that names it.
    """

    ids: set[int]
    wrong: list[str]


def eos_token_ids(folder: Path, vocab_size: int | None = None) -> NamedEnds:
    """End-of-sequence ids of `generation_config.json`, else of `config.json`; none without any.

    What is no id of a model with `vocab_size` of them is told and left out: no token ends there.
    """
    limit, wrong = sys.maxsize if vocab_size is None else vocab_size, list[str]()
    for name, config in (
        (GENERATION_CONFIG, read_generation_config(folder)),
        (_MODEL_CONFIG, _read_object(folder / _MODEL_CONFIG)),
    ):
        value = config.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found = {item for item in values if isinstance(item, int) and not isinstance(item, bool)}
        known = {item for item in found if 0 <= item < limit}
        if known != found or (not found and value not in (None, [])):
            _log.warning("%s: eos_token_id is %.80r, no token id; it is left out", folder, value)
            wrong.append(f"eos_token_id {value!r:.80} ({name})")
        if known:
            return NamedEnds(known, wrong)
    return NamedEnds(set(), wrong)


def guarded(place: Path, load: Any) -> Any:
    """What a function of the tokenizer's libraries returns; their errors and panics become ours.

    Raises:
        TokenizerLoadError: It raised something; names the place.
    """
    try:
        return load()
    except (TokenizerLoadError, KeyboardInterrupt, SystemExit):
        raise
    # The libraries raise bare Exceptions, and panic.
    except BaseException as error:
        summary = str(error).strip().split("\n")[0].rstrip(" .:")
        raise TokenizerLoadError(
            f"The tokenizer in {place} cannot be loaded: {summary:.500}; {WAY_OUT}"
        ) from error


def _converted(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of files that only transformers reads, and the roles that its class knows.

    Raises:
        TokenizerLoadError: There are none, or transformers doesn't read them without running code
            of the folder.
    """
    if not any(path.is_file() for name in _CONVERTED for path in folder.glob(name)):
        raise TokenizerLoadError(
            f"{folder}: has no tokenizer ({TOKENIZER_JSON}, {TOKENIZER_MODEL}, {TEKKEN_JSON},"
            f" vocab.json with merges.txt); put the model's own beside its weights, or {WAY_OUT}"
        )
    # transformers takes a second to import.
    from transformers import AutoTokenizer

    loaded = guarded(
        folder,
        lambda: AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        ),
    )
    backend = getattr(loaded, "backend_tokenizer", None)
    # Of files that it can't place it makes a tokenizer that knows no word.
    if backend is None or not backend.get_vocab_size():
        raise TokenizerLoadError(
            f"The tokenizer in {folder} ({type(loaded).__name__}) has no tokenizer.json form;"
            f" {WAY_OUT}"
        )
    return backend, dict(loaded.special_tokens_map)


def _tiktoken_of(folder: Path) -> Path | None:
    """A file of ranks where there is nothing that says more."""
    has_merges = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return None if has_merges or (folder / TEKKEN_JSON).is_file() else find_tiktoken(folder)


def _from_file(path: Path) -> Any:
    check_size(path, MAX_TOKENIZER_BYTES)
    return Backend.from_file(str(path))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bounded(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerLoadError(f"{path} must hold a JSON object.")
    return value


def _check_words(folder: Path, backend: Any) -> None:
    """Refuses a vocabulary that can't be a model's; each id is looked at later."""
    ids = backend.get_vocab(with_added_tokens=False).values()
    if not ids:
        raise TokenizerLoadError(f"The tokenizer in {folder} has no words; {WAY_OUT}")
    if max(ids) >= MAX_IDS:
        raise TokenizerLoadError(
            f"The tokenizer in {folder} has a word with the id {max(ids)}; no model has more than"
            f" {MAX_IDS} ids: {WAY_OUT}"
        )


def _roles(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    """Texts of special tokens by role; `older` is what `special_tokens_map.json` says."""
    roles: dict[str, Any] = {}
    others: list[str] = []
    for source in (older, config):
        for name, value in source.items():
            text = _text_of(value)
            if name in _LISTS:
                if isinstance(value, dict):
                    named = {key: _text_of(one) for key, one in value.items()}
                    roles |= {key: one for key, one in named.items() if one}
                    others += [one for one in named.values() if one]
                elif isinstance(value, list):
                    others += [one for one in map(_text_of, value) if one]
            elif name.endswith("_token") and text:
                roles[name] = text
            elif name in _ROLES and value is None:
                roles.pop(name, None)
    if others:
        roles["additional_special_tokens"] = list(dict.fromkeys(others))
    return roles


def _text_of(token: Any) -> str | None:
    """The text of a token that is written as such or as an object with its flags."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _class_roles(class_name: str, config: Mapping[str, Any], backend: Any) -> dict[str, str]:
    """Roles that files leave to the class that they name, where the vocabulary has the tokens."""
    silent = [name for name in ("bos_token", "eos_token") if name not in config]
    if not silent or class_name in _WITHOUT_ROLES:
        return {}
    # Takes seconds to import, more where torch is installed.
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    try:
        known = tokenizer_class_from_name(class_name)
    except (ImportError, AttributeError, ValueError):
        return {}
    if known is None:
        return {}
    parameters = inspect.signature(known.__init__).parameters
    found = {name: _text_of(parameters[name].default) for name in silent if name in parameters}
    return {
        name: text
        for name, text in found.items()
        if text is not None and backend.token_to_id(text) is not None
    }


def _add_missing_tokens(
    folder: Path, backend: Any, config: Mapping[str, Any], roles: Mapping[str, Any]
) -> None:
    """Make tokens known that `tokenizer.json` doesn't list; what it says of others stays."""
    listed = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    missing: list[AddedToken] = []
    stated = _stated_tokens(config)
    next_id = 0
    if stated:
        next_id = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    for number, token in stated:
        if token.content in listed:
            continue
        known_id = backend.token_to_id(token.content)
        expected = next_id if known_id is None else known_id
        if expected != number:
            _log.warning(
                "%s: token %r is listed with id %d in %s, but would get %d; it is left out",
                folder,
                token.content,
                number,
                _CONFIG,
                expected,
            )
            continue
        missing.append(token)
        listed[token.content] = token
        next_id += known_id is None
    # All at once: each call makes the search for all of them again.
    backend.add_tokens(missing)
    specials: list[AddedToken] = []
    for name, value in roles.items():
        if isinstance(value, list):
            # Where the file knows them, it may well say that they are markers that stay visible.
            texts = [text for text in value if text not in listed]
        else:
            texts = [value] if name in _ROLES else []
        for text in texts:
            known = listed.get(text)
            if backend.token_to_id(text) is not None and (known is None or not known.special):
                special = _as_special(known or AddedToken(text, normalized=False))
                specials.append(special)
                listed[text] = special
    backend.add_special_tokens(specials)


def _stated_tokens(config: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    """Ids and tokens of `added_tokens_decoder`, by id."""
    stated = config.get("added_tokens_decoder")
    found: list[tuple[int, AddedToken]] = []
    for key, state in stated.items() if isinstance(stated, dict) else ():
        text = _text_of(state)
        if text is None or not isinstance(state, dict) or not re.fullmatch("[0-9]{1,9}", key):
            continue
        flags = {name: bool(state.get(name, False)) for name in (*_FLAGS, "special")}
        found.append((int(key), AddedToken(text, **flags)))
    return sorted(found, key=lambda item: item[0])


def _as_special(token: AddedToken) -> AddedToken:
    flags = {name: bool(getattr(token, name)) for name in _FLAGS}
    return AddedToken(token.content, special=True, **flags)


def _add_ends(backend: Any, config: Mapping[str, Any], roles: Mapping[str, Any]) -> None:
    """Put bos or eos around texts where the config says so and the file's own adds nothing."""
    before: list[tuple[str, int]] = []
    after: list[tuple[str, int]] = []
    for switch, role, side in (
        ("add_bos_token", "bos_token", before),
        ("add_eos_token", "eos_token", after),
    ):
        token_id = backend.token_to_id(roles[role]) if role in roles else None
        if config.get(switch) is True and token_id is not None:
            side.append((roles[role], token_id))
    if not (before or after) or backend.num_special_tokens_to_add(is_pair=False):
        return
    template = [*(text for text, _ in before), "$A", *(text for text, _ in after)]
    ends = TemplateProcessing(single=template, special_tokens=[*before, *after])
    own = backend.post_processor
    backend.post_processor = ends if own is None else PostProcessors([own, ends])


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The template's source: of a file of its own, else of the config, else of a processor."""
    sources: dict[str, str] = {}
    stated = config.get("chat_template")
    if isinstance(stated, str):
        sources["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                sources[str(entry.get("name"))] = entry["template"]
    elif isinstance(stated, dict):
        sources |= {str(name): one for name, one in stated.items() if isinstance(one, str)}
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {
        path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    for name, path in paths.items():
        if path.is_file():
            try:
                sources[name] = read_bounded(path)
            except (OSError, ValueError) as error:
                raise TokenizerLoadError(f"{path} cannot be read: {error}") from error
    if not sources:
        # Of a model that also sees it may be its processor's alone.
        processor = _read_object(folder / _PROCESSOR_TEMPLATE).get("chat_template")
        return processor if isinstance(processor, str) else None
    if set(sources) == {"default"}:
        return sources["default"]
    return sources


def _max_length(config: Mapping[str, Any]) -> int | None:
    """`model_max_length`, unless it is transformers' way to say that there is none."""
    value = config.get("model_max_length")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 < value <= _MAX_STATED_LENGTH else None
