"""Writes a `Grammar` of the wire as the Lark text that llguidance compiles."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from llguidance import regex_to_lark

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.compiler import schema_rules
from engine_worker.grammar.special_tokens import Piece, SpecialTokens
from protocol.wire.messages import Grammar

MAX_SOURCE_BYTES: Final = 256 * 1024
"""A longer grammar is refused unread."""
MAX_NESTING: Final = 64
"""Levels of a JSON schema; the compiler itself ends at about twice as many."""
MAX_MARKERS: Final = 128
MAX_MARKER_CHARACTERS: Final = 256

_OBJECT_STYLE: Final = {"whitespace_flexible": True, "whitespace_pattern": "\\n {0,32}| "}
_FREE_OBJECT: Final = json.dumps({"x-guidance": _OBJECT_STYLE, "type": "object"})
"""Free JSON may be indented, but can't run on in white space. Parser workers write just this."""

_ANY: Final = "/(?s:.*)/"
# Strings, regular expressions and comments are passed over; what is left may be a marker.
_OPAQUE: Final = (
    r'"(?:[^"\\\n]|\\.)*"'
    r"|/(?![/*])(?:[^/\\\n]|\\.)+/"
    r"|(?://|#)[^\n]*"
)
_SCHEMA_OR_OPAQUE: Final = re.compile(rf"{_OPAQUE}|(?P<json>%json\s*)(?=\{{)")
_MARKER_OR_OPAQUE: Final = re.compile(
    _OPAQUE + r"|^(?P<rule>[a-z_][a-z0-9_]*)\[suffix=MARKER_(?P<suffix>\d+)\]:(?P<body>[^\n]*)"
    r"|\bMARKER_(?P<marker>\d+)\b",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class LarkSource:
    """A grammar as one Lark text for llguidance.

    Attributes:
        unenforced: Keywords of its JSON schemas that are left to the model.
    """

    text: str
    unenforced: tuple[str, ...] = ()


def lark_source(grammar: Grammar, special: SpecialTokens) -> LarkSource:
    """The grammar as one Lark text for llguidance.

    Args:
        grammar: From a client or a parser worker.
        special: The model's special tokens, which markers may be made of.

    Raises:
        UnsupportedGrammarError: It is too large, too deep, not what its kind says, or strict and
            more than can be enforced.
    """
    if len(grammar.source.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise UnsupportedGrammarError(f"The grammar is longer than {MAX_SOURCE_BYTES} bytes.")
    if len(grammar.markers) > MAX_MARKERS:
        raise UnsupportedGrammarError(f"The grammar has more than {MAX_MARKERS} markers.")
    for marker in (*grammar.markers, grammar.after_marker):
        if marker is not None and not 0 < len(marker) <= MAX_MARKER_CHARACTERS:
            raise UnsupportedGrammarError(
                f"A marker of the grammar has 1 to {MAX_MARKER_CHARACTERS} characters."
            )
    unenforced = dict.fromkeys(grammar.unenforced)
    body = _body(grammar, special, unenforced)
    if grammar.after_marker is not None:
        body = _armed_by(grammar.after_marker, body, special)
    return LarkSource(body, tuple(unenforced))


def _body(grammar: Grammar, special: SpecialTokens, unenforced: dict[str, None]) -> str:
    source = grammar.source
    if grammar.kind == "lark":
        return _with_markers(_with_schemas(source, unenforced), grammar.markers, special)
    if grammar.kind == "regex":
        return f"start: /{regex_to_lark(source, use_ascii='d')}/\n"
    if grammar.kind == "choice":
        first, *others = map(json.dumps, dict.fromkeys(_choices(source)))
        # One lexeme, of which there may be thousands; of rules not.
        return f"start: C\nC: {' | '.join([first, *others])}\n" if others else f"start: {first}\n"
    if grammar.kind == "json_object":
        return f"start: %json {_FREE_OBJECT}\n"
    _check_nesting(source)
    rules = schema_rules(source, is_strict=grammar.is_strict, has_style=False)
    unenforced.update(dict.fromkeys(rules.unenforced))
    return rules.lark


def _with_schemas(source: str, unenforced: dict[str, None]) -> str:
    """A Lark text in which the rules of each JSON schema stand in its place."""
    written, position = [], 0
    for match in _SCHEMA_OR_OPAQUE.finditer(source):
        if match["json"] is None or match.start() < position:
            continue
        try:
            _, end = json.JSONDecoder().raw_decode(source, match.end())
        except ValueError as error:
            raise UnsupportedGrammarError(f"A schema is not valid JSON: {error}.") from error
        except RecursionError as error:
            raise UnsupportedGrammarError("A schema is nested too deep.") from error
        schema = source[match.end() : end]
        if schema == _FREE_OBJECT:
            continue
        _check_nesting(schema)
        rules = schema_rules(schema)
        unenforced.update(dict.fromkeys(rules.unenforced))
        written += [source[position : match.start()], f"%lark {{\n{rules.lark}}}"]
        position = end
    return "".join([*written, source[position:]])


def _choices(source: str) -> list[str]:
    value = _load(source)
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(one, str) and one for one in value)
    ):
        raise UnsupportedGrammarError("A choice is a JSON list of texts that are not empty.")
    return value


def _load(source: str) -> Any:
    _check_nesting(source)
    try:
        return json.loads(source)
    except ValueError as error:
        raise UnsupportedGrammarError(f"The schema is not valid JSON: {error}.") from error


def _check_nesting(source: str) -> None:
    if _nesting(source) > MAX_NESTING:
        raise UnsupportedGrammarError(f"The schema is nested deeper than {MAX_NESTING} levels.")


def _nesting(source: str) -> int:
    """Upper bound of the levels, brackets within strings included."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{}\]]", source):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _with_markers(source: str, markers: tuple[str, ...], special: SpecialTokens) -> str:
    """A Lark text in which each `MARKER_i` became its tokens and texts."""
    if not markers:
        return source
    terminals: list[str] = []

    def pieces_of(number: str) -> tuple[Piece, ...]:
        index = int(number)
        if index >= len(markers):
            raise UnsupportedGrammarError(f"The grammar has no marker {index}.")
        return special.split(markers[index])

    def replaced(match: re.Match[str]) -> str:
        if match["marker"] is not None:
            return _written(pieces_of(match["marker"]))
        if match["suffix"] is None:
            return match[0]
        rule, body = match["rule"], match["body"]
        first, *rest = pieces_of(match["suffix"])
        if isinstance(first, str):
            if not rest:
                return f"{rule}[suffix={json.dumps(first)}]:{body}"
            return (
                f"{rule}: {rule}_text {_written(tuple(rest))}\n"
                f"{rule}_text[suffix={json.dumps(first)}]:{body}"
            )
        # Ordinary tokens must not spell the special ones: readers of the text can't tell them.
        marker = json.dumps(markers[int(match["suffix"])])
        terminals.append(f"UNTIL_{rule.upper()}: ({body.strip()}) & ~({_ANY} {marker} {_ANY})")
        return f"{rule}: UNTIL_{rule.upper()} {_written((first, *rest))}"

    written = _MARKER_OR_OPAQUE.sub(replaced, source)
    return "\n".join([written, *terminals, ""])


def _written(pieces: tuple[Piece, ...]) -> str:
    return " ".join(
        json.dumps(piece) if isinstance(piece, str) else f"<[{piece}]>" for piece in pieces
    )


def _armed_by(marker: str, body: str, special: SpecialTokens) -> str:
    """Free text, special tokens included, in which the body follows the first marker.

    The marker may come as special tokens or be spelt with ordinary ones. What follows its second
    special token is no longer waited for: it has to follow.
    """
    lines = [
        f"spelt[suffix={json.dumps(marker)}]: ANY",
        f"ANY: {_ANY}",
        f"FREE: ANY & ~(ANY {json.dumps(marker)} ANY)",
        f"body: %lark {{\n{body}\n}}",
    ]
    first, *rest = special.split(marker)
    if isinstance(first, str):
        return "\n".join([*lines, *_text_first(first, tuple(rest), special), ""])
    others = special.ranges(without=frozenset({first}))
    part = f" | FREE {others} start" if others else ""
    lines.insert(0, f"start: spelt body | FREE{part} | FREE <[{first}]> begun")
    between = ""
    for index, piece in enumerate(rest):
        if isinstance(piece, int):
            following = tuple(rest[index + 1 :])
            lines += _two_tokens(first, between, piece, following, special)
            return "\n".join([*lines, ""])
        between = piece
    return "\n".join([*lines, f"begun: {_written(tuple(rest))} body", ""])


def _text_first(first: str, rest: tuple[Piece, ...], special: SpecialTokens) -> list[str]:
    """Rules for a marker that begins with ordinary text, which may be all of it."""
    token = next((piece for piece in rest if isinstance(piece, int)), None)
    others = special.ranges(without=frozenset() if token is None else frozenset({token}))
    part = f" | FREE {others} start" if others else ""
    if token is None:
        return [f"start: spelt body | FREE{part}"]
    text = json.dumps(first)
    return [
        f"start: spelt body | FREE{part} | MEANT {_written(rest)} body | STRAY <[{token}]> start",
        f"MEANT: FREE & (ANY {text})",
        f"STRAY: FREE & ~(ANY {text})",
    ]


def _two_tokens(
    first: int, between: str, second: int, rest: tuple[Piece, ...], special: SpecialTokens
) -> list[str]:
    """Rules for what may follow a marker's first special token, which others may begin with too."""
    text = json.dumps(between)
    others = special.ranges(without=frozenset({first}))
    unlike = special.ranges(without=frozenset({first, second}))
    again = f"<[{first}]> begun"
    strays = [f"FREE_ELSE {again}", "FREE_ELSE"]
    meant = f"{text} " if between else ""
    strays += [f"FREE_ELSE {others} start"] if others else []
    strays += [f"{meant}{unlike} start"] if unlike else []
    strays += [f"{meant}{again}"] if first != second else []
    strays += [text]
    return [
        f"FREE_ELSE: FREE & ~({text})",
        f"begun: {meant}<[{second}]> {_written(rest)} body | {' | '.join(strays)}",
    ]
