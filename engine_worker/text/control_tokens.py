"""Tells control tokens that a chat template writes from text of a client that only spells them.

A template and the messages in it become one text, in which `<|im_end|>` of the template and
`<|im_end|>` of a user look alike. So what spells a control token in a client's strings is marked
before they are rendered, with a character that no client can send. Afterwards a spelling with a
mark in it, or right behind it, is the client's, and becomes the tokens of ordinary text.

The mark stands behind the spelling, so that templates that look for a marker in a message (such as
`</think>`), or split at it, find it as before.

Ordinary tokens come from a second tokenizer, the same but for the names of its control tokens:
there they are random strings that nobody can guess. The template's own are renamed in the text, and
the whole text is tokenised at once, so that all rules about neighbours and the beginning of a text
apply as they do without a client's spellings.
"""

import json
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from tokenizers import Tokenizer as Backend

from engine_worker.errors import InvalidRequestError, TokenizerLoadError
from engine_worker.text.detokenizer import BYTE_TOKEN
from engine_worker.text.tokenizer import Tokenizer

_MARK: Final = "\udcf7"
"""A lone surrogate: text with one is refused, because no UTF-8 can spell it."""
_ESCAPED_MARK: Final = json.dumps(_MARK)[1:-1]
_ALIAS_LENGTH: Final = 8
"""Of 65,534 private characters each: 128 bits."""
_PRIVATE_PLANE: Final = (0xF0000, 0xFFFFD)

MAX_CONTROL_CHARACTERS: Final = 256
"""Of one control token, or of a marker in a template."""
_MAX_SEARCHED: Final = 2**28
"""Characters of all of them, times those of the longest."""
_MAX_SOUGHT: Final = 2**36
"""Markers that are looked for, times characters of the templates."""

Mark = Callable[[str], str]


class Rendered(str):
    """The text that a template made, without marks.

    Attributes:
        marks: Places in it right behind which a client's part ends that spells a control token,
            or begins like one; ascending.
    """

    marks: tuple[int, ...]

    def __new__(cls, text: str, marks: tuple[int, ...] = ()) -> "Rendered":
        """A text with its places."""
        rendered = super().__new__(cls, text)
        rendered.marks = marks
        return rendered


class ControlTokens:
    """The control tokens of one model; safe to use from several threads.

    Control tokens are those that the tokenizer's files call special. In what tools answer, which
    comes from anywhere, so are all other added tokens that the template itself writes, such as
    `</tool_response>`.

    Args:
        tokenizer: The model's.
        template_sources: The Jinja source of each of its chat templates.

    Raises:
        TokenizerLoadError: The tokenizer can't be built with other names for its control tokens,
            or they are so long, or so many, that to tell them apart would take forever.
    """

    def __init__(self, tokenizer: Tokenizer, template_sources: Collection[str]) -> None:
        self._tokenizer = tokenizer
        ids = tokenizer.added_token_ids()
        special = {
            text: token_id
            for text, token_id in ids.items()
            # Bytes are spelt with tokens of these names.
            if token_id in tokenizer.special_token_ids and not BYTE_TOKEN.fullmatch(text)
        }
        others = [text for text in ids if text not in special and not text.isspace()]
        if len(others) * sum(map(len, template_sources)) > _MAX_SOUGHT:
            raise _too_costly(f"{len(others)} added tokens to look for in its chat template")
        markers = [text for text in others if any(text in source for source in template_sources)]
        _check_lengths([*special, *markers])
        self._spellings = _Spellings(special)
        self._spellings_in_tools = _Spellings([*special, *markers])
        unknown = tokenizer.unknown_token_id
        self._counted = frozenset(special.values()) - {unknown}
        self._counted_spellings = _Spellings(
            [text for text, token_id in special.items() if token_id != unknown]
        )
        self._aliases = _aliases(self._spellings_in_tools.texts)
        self._renamed = _renamed(tokenizer, self._aliases) if self._aliases else None

    def mark(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The same message of a client, with marks in its strings.

        Raises:
            InvalidRequestError: A string holds the mark, a lone surrogate.
        """
        is_of_tool = message["role"] == "tool" or "tool_call_id" in message
        spellings = self._spellings_in_tools if is_of_tool else self._spellings
        return {
            name: value if name == "role" else _deeply(value, spellings.mark)
            for name, value in message.items()
        }

    def mark_deeply(self, value: Any) -> Any:
        """The same JSON value of a client, such as its tools, with marks in its strings.

        Raises:
            InvalidRequestError: As in `mark`.
        """
        return _deeply(value, self._spellings.mark)

    def rendered(self, text: str, escapes: bool = False) -> Rendered:
        """What a template made of marked messages.

        Args:
            text: All of it.
            escapes: Whether the template may write other characters than ASCII as JSON escapes.
        """
        if escapes:
            text = text.replace(_ESCAPED_MARK, _MARK)
        parts = text.split(_MARK)
        if len(parts) == 1:
            return Rendered(text)
        marks, place = [], 0
        for part in parts[:-1]:
            place += len(part)
            marks.append(place)
        return Rendered("".join(parts), tuple(marks))

    def encode(self, rendered: Rendered, is_wanted: Callable[[], bool] | None = None) -> list[int]:
        """Token ids; only what the template wrote becomes control tokens.

        Args:
            rendered: From `rendered`.
            is_wanted: See `Tokenizer.encode`.

        Raises:
            InvalidRequestError: The text holds lone surrogates.
            AbandonedError: It is not wanted any more.
        """
        if not rendered.marks or self._renamed is None:
            token_ids = self._tokenizer.encode(
                rendered, add_special_tokens=False, is_wanted=is_wanted
            )
            # Normalisation may make a control token of what doesn't spell one (`＜s＞`).
            num_found = sum(map(self._counted.__contains__, token_ids))
            if self._renamed is None or num_found == self._counted_spellings.count(rendered):
                return token_ids
        text = self._with_aliases(rendered)
        return self._renamed.encode(text, add_special_tokens=False, is_wanted=is_wanted)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts of a client, each for itself; no control token among them.

        Raises:
            InvalidRequestError: A text holds lone surrogates.
        """
        return [
            token_ids
            if self._counted.isdisjoint(token_ids)
            else self.encode(self.rendered(self._spellings.mark(text)))
            for text, token_ids in zip(texts, self._tokenizer.encode_texts(texts), strict=True)
        ]

    def _with_aliases(self, rendered: Rendered) -> str:
        text, marks = str(rendered), rendered.marks
        parts: list[str] = []
        done = place = 0
        while (found := self._spellings_in_tools.find(text, place)) is not None:
            start, spellings = found
            place = start + 1
            for spelling in spellings:
                end = start + len(spelling)
                if bisect_right(marks, start) == bisect_right(marks, end):
                    parts += (text[done:start], self._aliases[spelling])
                    done = place = end
                    break
        return "".join((*parts, text[done:]))


class _Spellings:
    """Finds texts of tokens in a text."""

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = tuple(text for text in texts if text)
        self._pattern = re.compile(_alternatives(self.texts)) if self.texts else None
        self._beginnings = {text[:end] for text in self.texts for end in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._inner = _inner(self.texts)
        self._beginning_alike = {
            text: (text, *sorted(filter(text.startswith, inner), key=len, reverse=True))
            for text, inner in self._inner.items()
        }
        self._nest = any(self._inner.values())

    def find(self, text: str, place: int) -> tuple[int, tuple[str, ...]] | None:
        """Where the next spelling begins, and all that begin there, the longest first."""
        match = None if self._pattern is None else self._pattern.search(text, place)
        return None if match is None else (match.start(), self._beginning_alike[match[0]])

    def count(self, text: str) -> int:
        """How many there are."""
        return 0 if self._pattern is None else sum(1 for _ in self._pattern.finditer(text))

    def mark(self, text: str) -> str:
        """The text with a mark behind each spelling, and behind what begins one at its end.

        The latter because what follows in the prompt may be another string of the client.
        """
        if _MARK in text:
            raise InvalidRequestError(
                "The text holds a lone surrogate, which is no valid Unicode character."
            )
        if self._pattern is None:
            return text
        if self._nest:
            text = self._pattern.sub(self._marked_inside, text)
        else:
            text = self._pattern.sub(rf"\g<0>{_MARK}", text)
        stripped = text.rstrip()
        if any(
            stripped[-length:] in self._beginnings
            for length in range(1, min(self._longest, len(stripped)) + 1)
        ):
            text = f"{stripped}{_MARK}{text[len(stripped) :]}"
        return text

    def _marked_inside(self, match: re.Match[str]) -> str:
        text = match[0]
        ends = {len(text)}
        for inner in self._inner[text]:
            ends |= {
                place + len(inner) for place in range(len(text)) if text.startswith(inner, place)
            }
        places = [0, *sorted(ends)]
        pieces = (text[a:b] for a, b in pairwise(places))
        return "".join(f"{piece}{_MARK}" for piece in pieces)


def _check_lengths(texts: Collection[str]) -> None:
    """Every beginning of every text is kept, and every part of each is looked up."""
    longest = max(map(len, texts), default=0)
    if longest > MAX_CONTROL_CHARACTERS:
        raise _too_costly(
            f"a control token of {longest} characters; at most {MAX_CONTROL_CHARACTERS} work"
        )
    if longest * sum(map(len, texts)) > _MAX_SEARCHED:
        raise _too_costly(f"{len(texts)} control tokens of up to {longest} characters")


def _too_costly(what: str) -> TokenizerLoadError:
    return TokenizerLoadError(
        f"The tokenizer has {what}, too much to tell them from text of clients; set"
        " PENSTOCK_SPECIAL_TOKENS_IN_TEXT=true to serve it nevertheless."
    )


def _inner(texts: Collection[str]) -> dict[str, list[str]]:
    """For each text the others that stand in it; vocabularies have thousands."""
    known = set(texts)
    lengths = {len(text) for text in texts}
    return {
        text: [
            part
            for length in lengths
            if length < len(text)
            for place in range(len(text) - length + 1)
            if (part := text[place : place + length]) in known
        ]
        for text in texts
    }


def _alternatives(texts: Collection[str]) -> str:
    """A pattern that finds the longest of some texts in time that doesn't grow with their number.

    A tree of their characters; vocabularies have thousands of such tokens, most of which begin
    alike.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}

    def written(text: str, node: dict[str, Any]) -> str:
        # Along the way where there is only one, without recursion.
        while len(node) == 1 and "" not in node:
            ((character, node),) = node.items()
            text += re.escape(character)
        branches = [written(re.escape(key), child) for key, child in node.items() if key]
        if not branches:
            return text
        inner = f"(?:{'|'.join(branches)})"
        return f"{text}{inner}?" if "" in node else f"{text}{inner}"

    return written("", tree)


def _deeply(value: Any, mark: Mark) -> Any:
    """A JSON value with all its strings marked, names of members included."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {mark(name): _deeply(one, mark) for name, one in value.items()}
    if isinstance(value, list):
        return [_deeply(one, mark) for one in value]
    return value


def _aliases(texts: Collection[str]) -> dict[str, str]:
    """Names for tokens that nobody can guess, and that normalisation leaves as they are."""
    source = random.SystemRandom()
    return {
        text: "".join(chr(source.randint(*_PRIVATE_PLANE)) for _ in range(_ALIAS_LENGTH))
        for text in texts
    }


def _renamed(tokenizer: Tokenizer, aliases: Mapping[str, str]) -> Tokenizer:
    """The same tokenizer with other names for some added tokens, under the same ids."""
    state = json.loads(tokenizer.serialized())
    for token in state["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    model = state["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(text, text): number for text, number in vocabulary.items()}
    else:
        model["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, aliases)]
    state["post_processor"] = None
    renamed = tokenizer.with_backend(Backend.from_str(json.dumps(state)))
    ids, renamed_ids = tokenizer.added_token_ids(), renamed.added_token_ids()
    for text, alias in aliases.items():
        if renamed_ids.get(alias) != ids[text]:
            raise TokenizerLoadError(
                f"The tokenizer can't keep {text!r} in text apart from the control token; set"
                " PENSTOCK_SPECIAL_TOKENS_IN_TEXT=true to serve it nevertheless."
            )
    return renamed


def _touches(merge: Any, aliases: Mapping[str, str]) -> bool:
    """Whether a merge makes or uses a token that has another name now."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in aliases or right in aliases or left + right in aliases
