"""Values that no field of a config should have, put into each field in turn."""

from collections.abc import Iterator
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    *(None, -1, 0, 1, 3, 10**400, 1e30, 1e300, float("nan"), float("inf"), -0.5, True, False),
    *("x", "", [], [None], [1, 2], [1, 10**400], [[]], [{}], ["full_attention"], {}),
    *({"a": None}, {"0": None}, {"0": 5}),
)
_INNER: Final = ("text_config", "rope_parameters", "rope_scaling")


def with_odd_values(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config with one odd value, or without one of its fields: the same object, each time."""
    for holder in list(_objects_of(values)):
        for field, stated in list(holder.items()):
            for odd in ODD:
                holder[field] = odd
                yield values
            del holder[field]
            yield values
            holder[field] = stated


def _objects_of(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config, its text model's, and their ropes, by the type of layer too."""
    yield values
    for name in _INNER:
        if isinstance(inner := values.get(name), dict):
            yield from _objects_of(inner)
    for inner in values.values():
        if isinstance(inner, dict) and "rope_theta" in inner:
            yield inner
