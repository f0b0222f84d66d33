"""Rules of a grammar as data: written as Lark at the end, without what no text can satisfy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from engine_worker.grammar.json_schema.style import Style, dumped, spelt, text_literal


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly this text, a token of JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a terminal with this body matches; a body is one lexeme of parts to intersect."""

    body: str


@dataclass(frozen=True, slots=True)
class JsonValue:
    """Values of a schema that llguidance compiles itself, as JSON text with the style in it."""

    schema: str


@dataclass(frozen=True, slots=True)
class Ref:
    """A rule by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other; none is the empty text."""

    parts: tuple["Expr", ...] = ()


@dataclass(frozen=True, slots=True)
class Alt:
    """One of some; of none there is no text at all."""

    parts: tuple["Expr", ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times, or any number from `least` on when `most` is None."""

    part: "Expr"
    least: int
    most: int | None


Expr = Text | Terminal | JsonValue | Ref | Seq | Alt | Repeat

EMPTY: Final = Seq()
NEVER: Final = Alt()


def seq(*parts: Expr) -> Expr:
    """A sequence.

    Adjacent texts stay apart: each is a token of JSON, and one lexeme. Of two ways to write a value
    the lexer follows the longer lexeme, so they have to have the same ones.
    """
    flat: list[Expr] = []
    for part in parts:
        flat += part.parts if isinstance(part, Seq) else (part,)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(*parts: Expr) -> Expr:
    """An alternative; each part once."""
    flat: dict[Expr, None] = {}
    for part in parts:
        flat.update(dict.fromkeys(part.parts if isinstance(part, Alt) else (part,)))
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def literals(values: list[Any], style: Style) -> Expr:
    """One of some values; of scalars as one lexeme: many of them cost a rule nothing."""
    scalars = [value for value in values if not isinstance(value, list | dict)]
    spellings = dict.fromkeys(text for value in scalars for text in spelt(value, style))
    ways: list[Expr] = [
        _literal(value, style) for value in values if isinstance(value, list | dict)
    ]
    if len(spellings) > 1:
        ways.append(Terminal(" | ".join(map(quoted, spellings))))
    else:
        ways += map(Text, spellings)
    return alt(*ways)


def _literal(value: Any, style: Style) -> Expr:
    match value:
        case dict():
            parts = [
                seq(Text(dumped(name)), Text(style.key_separator), _literal(one, style))
                for name, one in value.items()
            ]
            opening, closing = "{", "}"
        case list():
            parts = [_literal(one, style) for one in value]
            opening, closing = "[", "]"
        case _:
            return Text(dumped(value))
    between = Text(style.item_separator)
    return seq(
        Text(opening),
        *parts[:1],
        *(one for part in parts[1:] for one in (between, part)),
        Text(closing),
    )


class Rules:
    """Collects rules under names of their own."""

    def __init__(self) -> None:
        self._rules: dict[str, Expr] = {}

    def new(self) -> Ref:
        """A rule whose body comes later."""
        name = f"j{len(self._rules)}"
        self._rules[name] = NEVER
        return Ref(name)

    def put(self, rule: Ref, body: Expr) -> Ref:
        """Give a rule its body."""
        self._rules[rule.name] = body
        return rule

    def lark(self, start: Expr) -> str | None:
        """The grammar as Lark text that begins with `start`; None when no text satisfies it.

        Alternatives that lead nowhere are left out: in a schema that recurs, or forbids.
        """
        productive = self._productive()
        lines: list[str] = []
        terminals: dict[str, str] = {}
        body = _pruned(start, productive)
        if body is None:
            return None
        waiting, known = [("start", body)], {"start"}
        while waiting:
            name, body = waiting.pop()
            lines.append(f"{name}: {_written(body, terminals)}")
            for used in _refs(body):
                if used not in known:
                    known.add(used)
                    inner = _pruned(self._rules[used], productive)
                    assert inner is not None
                    waiting.append((used, inner))
        lines += [f"{name}: {terminal}" for terminal, name in terminals.items()]
        return "\n".join([*lines, ""])

    def _productive(self) -> set[str]:
        """Names of the rules that some text satisfies."""
        users: dict[str, list[str]] = {}
        for name, body in self._rules.items():
            for used in _refs(body):
                users.setdefault(used, []).append(name)
        found: set[str] = set()
        waiting = list(self._rules)
        while waiting:
            name = waiting.pop()
            if name not in found and _is_productive(self._rules[name], found):
                found.add(name)
                waiting += users.get(name, ())
        return found


def quoted(text: str) -> str:
    """A text as a Lark string."""
    return text_literal(text)


def _refs(expr: Expr) -> Iterator[str]:
    match expr:
        case Ref(name):
            yield name
        case Seq(parts) | Alt(parts):
            for part in parts:
                yield from _refs(part)
        case Repeat(part):
            yield from _refs(part)


def _is_productive(expr: Expr, found: set[str]) -> bool:
    match expr:
        case Ref(name):
            return name in found
        case Seq(parts):
            return all(_is_productive(part, found) for part in parts)
        case Alt(parts):
            return any(_is_productive(part, found) for part in parts)
        case Repeat(part, least, most):
            return (most is None or most >= least) and (least == 0 or _is_productive(part, found))
        case _:
            return True


def _pruned(expr: Expr, productive: set[str]) -> Expr | None:
    """The expression without what no text satisfies; None when nothing is left."""
    if not _is_productive(expr, productive):
        return None
    match expr:
        case Seq(parts):
            kept = [_pruned(part, productive) for part in parts]
            return seq(*(part for part in kept if part is not None))
        case Alt(parts):
            kept = [_pruned(part, productive) for part in parts]
            return alt(*(part for part in kept if part is not None))
        case Repeat(part, least, most):
            inner = _pruned(part, productive)
            return EMPTY if inner is None or most == 0 else Repeat(inner, least, most)
        case _:
            return expr


def _written(expr: Expr, terminals: dict[str, str]) -> str:
    match expr:
        case Text(text):
            return quoted(text)
        case Terminal(body):
            return terminals.setdefault(body, f"T{len(terminals)}")
        case JsonValue(schema):
            return f"%json {schema}"
        case Ref(name):
            return name
        case Seq(parts):
            return " ".join(_inner(part, terminals) for part in parts) or '""'
        case Alt(parts):
            return " | ".join(_written(part, terminals) for part in parts)
        case Repeat(part, least, most):
            if (least, most) == (0, None):
                times = "*"
            elif (least, most) == (0, 1):
                times = "?"
            else:
                times = f"{{{least},{'' if most is None else most}}}"
            return f"({_written(part, terminals)}){times}"


def _inner(expr: Expr, terminals: dict[str, str]) -> str:
    written = _written(expr, terminals)
    return f"({written})" if isinstance(expr, Alt) else written
