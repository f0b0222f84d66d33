"""What a config was read as, as text: for names of what was computed with it.

Two versions of this program, or of a package with a family, may read the same files as two models.
"""

from dataclasses import fields, is_dataclass
from typing import Final

_ONLY_HOW_MUCH: Final = frozenset({"served_length"})
"""Fields that say how much is served; what of it changes numbers is told apart elsewhere."""


def reading_of(spec: object) -> str:
    """A spec as one line, the same in every process.

    A field that has its default isn't told: one that a later version adds changes the text of those
    models only that it says something of.

    Args:
        spec: A dataclass of numbers, texts, enumerations, and tuples or dataclasses of these.
    """
    if is_dataclass(spec):
        told = (
            f"{field.name}={reading_of(value)}"
            for field in fields(spec)
            if field.name not in _ONLY_HOW_MUCH
            and (value := getattr(spec, field.name)) != field.default
        )
        return f"{type(spec).__name__}({', '.join(told)})"
    if isinstance(spec, tuple):
        return f"[{', '.join(map(reading_of, spec))}]"
    # Of an enumeration's member the value, which stays when its class is called otherwise.
    return repr(str(spec)) if isinstance(spec, str) else repr(spec)
