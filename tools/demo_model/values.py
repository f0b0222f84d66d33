"""Argument values: how each kind is drawn, written in JSON, and said in a sentence."""

from collections.abc import Callable
from dataclasses import dataclass

from tools.demo_model.draw import Draw

Scalar = str | int | float | bool

_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "CAD", "AUD", "SEK", "INR", "CNY")
_DOMAINS = ("example.com", "mail.com", "test.org", "work.net")
_CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")
_EXTENSIONS = ("txt", "pdf", "csv", "png", "md")


@dataclass(frozen=True)
class Value:
    """One argument's value and the words that stand for it in the request."""

    json: Scalar
    said: str

    @classmethod
    def of(cls, value: Scalar) -> "Value":
        """A value that is said as it is written."""
        return cls(value, str(value).lower() if isinstance(value, bool) else str(value))


def draw_value(draw: Draw, kind: str) -> Value:
    """A value of one kind: a listed kind such as `city`, or one of those below."""
    maker = _MAKERS.get(kind)
    return Value.of(maker(draw) if maker else draw.listed(kind))


def _words(draw: Draw) -> str:
    return " ".join(draw.listed("word") for _ in range(draw.integer(1, 4)))


def _email(draw: Draw) -> str:
    return f"{draw.listed('person').lower()}@{draw.choice(_DOMAINS)}"


def _date(draw: Draw) -> str:
    return f"20{draw.integer(24, 29)}-{draw.integer(1, 12):02}-{draw.integer(1, 28):02}"


def _time(draw: Draw) -> str:
    return f"{draw.integer(0, 23):02}:{draw.choice((0, 15, 30, 45, draw.integer(0, 59))):02}"


def _code(draw: Draw) -> str:
    letters = "".join(draw.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(draw.integer(1, 2)))
    return f"{letters}{draw.choice(('-', ''))}{draw.integer(10, 9999)}"


def _decimal(draw: Draw) -> float:
    return draw.integer(1, 99) + draw.choice((0.5, 0.25, 0.75, 0.1, 0.2, 0.9))


def _amount(draw: Draw) -> int:
    return draw.integer(1, draw.choice((9, 99, 999, 9999)))


_MAKERS: dict[str, Callable[[Draw], Scalar]] = {
    "words": _words,
    "topics": lambda draw: " ".join(draw.listed("topic") for _ in range(draw.choice((1, 1, 2)))),
    "condition": lambda draw: draw.choice(_CONDITIONS),
    "state": lambda draw: draw.choice(("on its way", "delivered", "packed", "waiting")),
    "done": lambda draw: draw.choice(("ok", "done", "success")),
    "email": _email,
    "date": _date,
    "time": _time,
    "code": _code,
    "decimal": _decimal,
    "amount": _amount,
    "small": lambda draw: draw.integer(1, 30),
    "degrees": lambda draw: draw.integer(-9, 39),
    "currency": lambda draw: draw.choice(_CURRENCIES),
    "file": lambda draw: f"{draw.listed('word')}.{draw.choice(_EXTENSIONS)}",
}

_TYPES = {"amount": "integer", "small": "integer", "degrees": "integer", "decimal": "number"}


def json_type(kind: str) -> str:
    """The JSON schema type of a kind's values."""
    return _TYPES.get(kind, "string")
