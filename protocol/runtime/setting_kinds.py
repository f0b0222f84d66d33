"""The kinds of settings: how values are read from text, checked and described."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

ValueT = TypeVar("ValueT")
NumberT = TypeVar("NumberT", int, float)

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B?|B)?", re.IGNORECASE)
_UNIT_EXPONENTS = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_UNITS = ("B", "KiB", "MiB", "GiB")
_MAX_SHOWN_CHARACTERS = 80


class UnfitValueError(ValueError):
    """A value that a setting can't have; whoever knows the setting's name makes a sentence of it.

    Attributes:
        value: For people, cut where it would fill the screen.
        good: What the setting must be: `at least 1`.
        wrong: What the value is or must be: `is below 1`; empty where `good` says enough.
    """

    def __init__(self, value: object, good: str, wrong: str = "") -> None:
        shown = repr(value)
        is_long = len(shown) > _MAX_SHOWN_CHARACTERS
        self.value = f"{shown[:_MAX_SHOWN_CHARACTERS]}…" if is_long else shown
        self.good = good
        self.wrong = wrong
        super().__init__(f"must be {good}, not {self.value}")


class Kind(Generic[ValueT]):
    """What values a setting has."""

    option_type: type[Any] = str
    """What the command line's parser makes of an option before `accept` sees it."""

    def parse(self, text: str) -> ValueT:
        """A value from text that is neither empty nor has blanks around it.

        Raises:
            UnfitValueError: The text is no good value.
        """
        raise NotImplementedError

    def accept(self, value: object) -> ValueT:
        """A value from a file or an option, where it may have a type already.

        Raises:
            UnfitValueError: As `parse`, or its type is wrong.
        """
        if not isinstance(value, str) or not value.strip():
            good = "a non-empty string"
            raise UnfitValueError(value, good, f"must be {good}")
        return self.parse(value.strip())

    def show(self, value: Any) -> str:
        """A value for readers of the documentation."""
        return str(value)

    def describe(self) -> str:
        """The good values, for readers of the documentation."""
        raise NotImplementedError


class Text(Kind[str]):
    """A text, stripped."""

    def parse(self, text: str) -> str:
        return text

    def describe(self) -> str:
        return "text"


class FilePath(Kind[Path]):
    """A path with `~` expanded."""

    def parse(self, text: str) -> Path:
        try:
            return Path(text).expanduser()
        except RuntimeError:
            good = "a path in a home that is there"
            raise UnfitValueError(text, good, "begins with a home that can't be found") from None

    def show(self, value: Any) -> str:
        return f"`{value}`"

    def describe(self) -> str:
        return "path"


@dataclass(frozen=True)
class WholeNumber(Kind[int]):
    """A whole number within bounds, both inclusive."""

    minimum: int | None
    maximum: int | None
    option_type = int

    def parse(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise UnfitValueError(text, "a whole number", "is no whole number") from None
        return _bounded(value, self.minimum, self.maximum)

    def accept(self, value: object) -> int:
        return self.parse(str(value))

    def describe(self) -> str:
        return _range(self.minimum, self.maximum, self.show) or "whole number"


@dataclass(frozen=True)
class Number(Kind[float]):
    """A finite number within bounds, both inclusive."""

    minimum: float | None
    maximum: float | None
    option_type = float

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise UnfitValueError(text, "a number", "is no number") from None
        if not math.isfinite(value):
            raise UnfitValueError(text, "a finite number", "is no finite number")
        return _bounded(value, self.minimum, self.maximum)

    def accept(self, value: object) -> float:
        return self.parse(str(value))

    def show(self, value: Any) -> str:
        return f"{value:g}"

    def describe(self) -> str:
        return _range(self.minimum, self.maximum, self.show) or "number"


class Switch(Kind[bool]):
    """1/true/yes/on or 0/false/no/off in text, a bool elsewhere."""

    option_type = bool

    def parse(self, text: str) -> bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        return self.accept(text)

    def accept(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise UnfitValueError(value, "true or false", "must be true or false")
        return value

    def show(self, value: Any) -> str:
        return str(value).lower()

    def describe(self) -> str:
        return "true, false"


@dataclass(frozen=True)
class Choice(Kind[str]):
    """One of a few words, given in any case."""

    choices: tuple[str, ...]

    def parse(self, text: str) -> str:
        return self.accept(text)

    def accept(self, value: object) -> str:
        for member in self.choices:
            if member == str(value).strip().lower():
                return member
        good = f"one of {', '.join(self.choices)}"
        raise UnfitValueError(value, good, f"must be {good}")

    def describe(self) -> str:
        return ", ".join(f"`{word}`" for word in self.choices)


@dataclass(frozen=True)
class Words(Kind[tuple[str, ...]]):
    """A comma-separated list; `each` makes a member of a word, or raises UnfitValueError."""

    each: Callable[[str], str]

    def parse(self, text: str) -> tuple[str, ...]:
        return tuple(self.each(word) for word in split_words(text))

    def describe(self) -> str:
        return "comma list"


@dataclass(frozen=True)
class Size(Kind[int]):
    """Bytes, with or without a unit, within bounds, both inclusive."""

    minimum: int | None
    maximum: int | None

    def parse(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise UnfitValueError(text, "a size such as 512MiB or 2GiB")
        unit = (match["unit"] or "").upper()
        factor: int = (1000 if len(unit) == 2 else 1024) ** _UNIT_EXPONENTS[unit[:1]]
        value = float(match["number"]) * factor
        if math.isinf(value):
            raise UnfitValueError(text, "a size that memory can have")
        return _bounded(round(value), self.minimum, self.maximum)

    def accept(self, value: object) -> int:
        return self.parse(str(value).strip())

    def show(self, value: int) -> str:
        exponent = max(e for e in range(len(_UNITS)) if value % 1024**e == 0) if value else 0
        return f"{value // 1024**exponent}{_UNITS[exponent]}"

    def describe(self) -> str:
        return _range(self.minimum, self.maximum, self.show) or "size"


def split_words(given: str) -> tuple[str, ...]:
    """The members of a comma-separated list; blanks around them and empty ones are dropped."""
    return tuple(word for part in given.split(",") if (word := part.strip()))


def _bounded(value: NumberT, minimum: NumberT | None, maximum: NumberT | None) -> NumberT:
    if minimum is not None and value < minimum:
        raise UnfitValueError(value, f"at least {minimum}", f"is below {minimum}")
    if maximum is not None and value > maximum:
        raise UnfitValueError(value, f"at most {maximum}", f"is above {maximum}")
    return value


def _range(minimum: Any, maximum: Any, show: Callable[[Any], str]) -> str:
    """Bounds for people; empty without any."""
    if maximum is None:
        return "" if minimum is None else f"{show(minimum)} or more"
    return f"at most {show(maximum)}" if minimum is None else f"{show(minimum)} to {show(maximum)}"
