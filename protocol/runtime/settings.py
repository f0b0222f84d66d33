"""Reads typed settings from a mapping such as `os.environ`; a bad value names its setting."""

import builtins
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, overload

from protocol.errors import ConfigurationError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B?|B)?", re.IGNORECASE)
_UNIT_EXPONENTS = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4}

NumberT = TypeVar("NumberT", int, float)


class SettingsReader:
    """Typed look-ups in a mapping of strings.

    An empty value counts as unset, because Compose hands unset variables on as empty ones. To let
    command-line options win over the environment, pass `ChainMap(options, os.environ)`.

    Attributes:
        seen: The names asked for so far, aliases excluded; a test holds the documentation to them.
    """

    def __init__(self, environ: Mapping[builtins.str, builtins.str]) -> None:
        self._environ = environ
        self.seen: set[builtins.str] = set()

    def raw(self, name: builtins.str, aliases: Sequence[builtins.str] = ()) -> builtins.str | None:
        """The stripped text of a setting, or of the first alias that is set; None when unset."""
        self.seen.add(name)
        for candidate in (name, *aliases):
            text = self._environ.get(candidate, "").strip()
            if text:
                return text
        return None

    @overload
    def str(
        self, name: builtins.str, default: builtins.str, *, aliases: Sequence[builtins.str] = ...
    ) -> builtins.str: ...
    @overload
    def str(
        self, name: builtins.str, default: None = None, *, aliases: Sequence[builtins.str] = ...
    ) -> builtins.str | None: ...
    def str(
        self,
        name: builtins.str,
        default: builtins.str | None = None,
        *,
        aliases: Sequence[builtins.str] = (),
    ) -> builtins.str | None:
        """A text, stripped."""
        text = self.raw(name, aliases)
        return default if text is None else text

    @overload
    def int(
        self,
        name: builtins.str,
        default: builtins.int,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.int: ...
    @overload
    def int(
        self,
        name: builtins.str,
        default: None = None,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.int | None: ...
    def int(
        self,
        name: builtins.str,
        default: builtins.int | None = None,
        *,
        minimum: builtins.int | None = None,
        maximum: builtins.int | None = None,
        aliases: Sequence[builtins.str] = (),
    ) -> builtins.int | None:
        """A whole number within bounds, both inclusive.

        Raises:
            ConfigurationError: Not a whole number, or out of bounds.
        """
        text = self.raw(name, aliases)
        if text is None:
            return default
        try:
            value = builtins.int(text)
        except ValueError:
            raise ConfigurationError(f"{name} must be a whole number, not {text!r}.") from None
        return _bounded(name, value, minimum, maximum)

    @overload
    def float(
        self,
        name: builtins.str,
        default: builtins.float,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.float: ...
    @overload
    def float(
        self,
        name: builtins.str,
        default: None = None,
        *,
        minimum: builtins.float | None = ...,
        maximum: builtins.float | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.float | None: ...
    def float(
        self,
        name: builtins.str,
        default: builtins.float | None = None,
        *,
        minimum: builtins.float | None = None,
        maximum: builtins.float | None = None,
        aliases: Sequence[builtins.str] = (),
    ) -> builtins.float | None:
        """A finite number within bounds, both inclusive.

        Raises:
            ConfigurationError: Not a finite number, or out of bounds.
        """
        text = self.raw(name, aliases)
        if text is None:
            return default
        try:
            value = builtins.float(text)
        except ValueError:
            raise ConfigurationError(f"{name} must be a number, not {text!r}.") from None
        if not math.isfinite(value):
            raise ConfigurationError(f"{name} must be a finite number, not {text!r}.")
        return _bounded(name, value, minimum, maximum)

    def bool(
        self, name: builtins.str, default: builtins.bool, *, aliases: Sequence[builtins.str] = ()
    ) -> builtins.bool:
        """A switch: 1/true/yes/on or 0/false/no/off, in any case.

        Raises:
            ConfigurationError: Anything else.
        """
        text = self.raw(name, aliases)
        if text is None:
            return default
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigurationError(f"{name} must be true or false, not {text!r}.")

    @overload
    def path(
        self, name: builtins.str, default: Path, *, aliases: Sequence[builtins.str] = ...
    ) -> Path: ...
    @overload
    def path(
        self, name: builtins.str, default: None = None, *, aliases: Sequence[builtins.str] = ...
    ) -> Path | None: ...
    def path(
        self,
        name: builtins.str,
        default: Path | None = None,
        *,
        aliases: Sequence[builtins.str] = (),
    ) -> Path | None:
        """A path with `~` expanded; whether it exists is the caller's business."""
        text = self.raw(name, aliases)
        return default if text is None else Path(text).expanduser()

    def choice(
        self,
        name: builtins.str,
        default: builtins.str,
        choices: Sequence[builtins.str],
        *,
        aliases: Sequence[builtins.str] = (),
    ) -> builtins.str:
        """One of a few words, in lower case.

        Raises:
            ConfigurationError: Another word; the message lists the good ones.
        """
        text = self.raw(name, aliases)
        if text is None:
            return default
        if text.lower() not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {text!r}.")
        return text.lower()

    def words(
        self,
        name: builtins.str,
        default: tuple[builtins.str, ...] = (),
        *,
        aliases: Sequence[builtins.str] = (),
    ) -> tuple[builtins.str, ...]:
        """A comma-separated list; blanks around its members and empty members are dropped."""
        text = self.raw(name, aliases)
        if text is None:
            return default
        return tuple(word for part in text.split(",") if (word := part.strip()))

    @overload
    def size_bytes(
        self,
        name: builtins.str,
        default: builtins.int,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.int: ...
    @overload
    def size_bytes(
        self,
        name: builtins.str,
        default: None = None,
        *,
        minimum: builtins.int | None = ...,
        maximum: builtins.int | None = ...,
        aliases: Sequence[builtins.str] = ...,
    ) -> builtins.int | None: ...
    def size_bytes(
        self,
        name: builtins.str,
        default: builtins.int | None = None,
        *,
        minimum: builtins.int | None = None,
        maximum: builtins.int | None = None,
        aliases: Sequence[builtins.str] = (),
    ) -> builtins.int | None:
        """A size such as `1048576`, `512MiB`, `2GB` or `1.5G`.

        `KB` is 1000 bytes; `KiB` and `K` are 1024.

        Raises:
            ConfigurationError: Not a size, or out of bounds.
        """
        text = self.raw(name, aliases)
        if text is None:
            return default
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{name} must be a size such as 512MiB or 2GiB, not {text!r}.")
        unit = (match["unit"] or "").upper()
        base = 1000 if len(unit) == 2 else 1024
        value = round(
            builtins.float(match["number"]) * builtins.float(base) ** _UNIT_EXPONENTS[unit[:1]]
        )
        return _bounded(name, value, minimum, maximum)


def _bounded(
    name: str, value: NumberT, minimum: NumberT | None, maximum: NumberT | None
) -> NumberT:
    if minimum is not None and value < minimum:
        raise ConfigurationError(f"{name} must be at least {minimum}, not {value}.")
    if maximum is not None and value > maximum:
        raise ConfigurationError(f"{name} must be at most {maximum}, not {value}.")
    return value
