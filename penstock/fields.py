"""Options that set fields of a record on the server: declared once, for `create` and `update`."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from penstock.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., None])

Clear = Annotated[
    list[str] | None,
    typer.Option("--clear", metavar="FIELD", help="Back to its default; repeat it."),
]

MICROS = 1_000_000
_MAX_MONEY_CHARS = 32
_MAX_MONEY = 10**12
_MAX_SECRET_CHARS = 4096


class Field(NamedTuple):
    """A field that `create` and `update` set.

    Attributes:
        name: On the server.
        flag: As typed.
        kind: What typer reads.
        text: For `--help`.
        sent: Makes what is sent of what was typed.
        parameter: Of the command, where `name` means something else there already.
    """

    name: str
    flag: str
    kind: Any
    text: str
    sent: Callable[[Any], Any] = lambda typed: typed
    parameter: str = ""

    @property
    def key(self) -> str:
        """Its name among what a command was given."""
        return self.parameter or self.name


def with_fields(fields: Sequence[Field]) -> Callable[[Command], Command]:
    """Gives a command that takes `**given` an option for each field."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        *named, _ = signature.parameters.values()
        options = [
            inspect.Parameter(
                field.key,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    field.kind | None, typer.Option(field.flag, help=field.text, show_default=False)
                ],
            )
            for field in fields
        ]
        full = signature.replace(parameters=[*named, *options])
        command.__signature__ = full  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def body_of(fields: Iterable[Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, as the server takes it."""
    return {
        field.name: field.sent(given[field.key])
        for field in fields
        if given.get(field.key) not in (None, [])
    }


def changes_of(
    fields: Iterable[Field], given: Mapping[str, Any], clear: Iterable[str] | None, help_text: str
) -> dict[str, Any]:
    """What is to change, and what goes back to its default.

    Raises:
        UsageError: Nothing does.
    """
    body = body_of(fields, given) | dict.fromkeys(clear or ())
    if not body:
        raise UsageError(f"Say what is to change; see `{help_text}`.")
    return body


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Texts by name, of NAME=TEXT.

    Raises:
        UsageError: One has no `=`.
    """
    parted = [text.partition("=") for text in texts]
    if not all(separator for _, separator, _ in parted):
        raise UsageError("--metadata takes NAME=TEXT.")
    return {name: text for name, _, text in parted}


def micros(text: str) -> int:
    """Micro-units of an amount of money such as 20 or 0.15, exactly.

    Raises:
        UsageError: It is none, negative, beyond 10^12 units, or finer than a micro-unit.
    """
    try:
        amount = Decimal(text) if len(text) <= _MAX_MONEY_CHARS else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= _MAX_MONEY:
        raise UsageError(f"{text[:_MAX_MONEY_CHARS]!r} is no amount of money; write 20 or 0.15.")
    exact = amount * MICROS
    if exact != exact.to_integral_value():
        raise UsageError(f"{text!r} has more than six decimals.")
    return int(exact)


def secret_of(path: str) -> str:
    """The secret in a file: what stands in a command can be read by others on the machine.

    Raises:
        UsageError: It can't be read, or is no text.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(_MAX_SECRET_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from None


def money(amount: int | None) -> str:
    """Micro-units as an amount of money, with cents at least."""
    if amount is None:
        return ""
    whole, rest = divmod(abs(amount), MICROS)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"


def moment(unix_s: float | None, time_format: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    """Unix seconds as a time in UTC; what no calendar has stays the number that it is."""
    if unix_s is None:
        return ""
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime(time_format)
    except (OverflowError, OSError, ValueError):
        return str(unix_s)
