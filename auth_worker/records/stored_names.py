"""Names that callers choose, as every database can hold and index them."""

import hashlib
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Final, TypeVar

from msgspec import Struct, structs

MAX_NAME_BYTES: Final = 512
"""In UTF-8. An entry of a PostgreSQL index holds 2704 bytes, and four such names stand in one."""
_NAMES: Final = frozenset({"model", "endpoint", "end_user"})

_Command = TypeVar("_Command", bound=Struct)


def storable(text: str) -> str:
    """A text as every database can hold it: PostgreSQL's know no U+0000."""
    return text.replace("\0", "\ufffd")


def stored_name(name: str) -> str:
    """A name as every database can hold and index it; a longer one is told by its digest."""
    if name.isascii() and len(name) <= MAX_NAME_BYTES and "\0" not in name:
        return name  # nearly all of them
    name = storable(name)
    if len(name) * 4 <= MAX_NAME_BYTES or (name.isascii() and len(name) <= MAX_NAME_BYTES):
        return name
    text = name.encode("utf-8", "surrogatepass")
    if len(text) <= MAX_NAME_BYTES:
        return name
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def with_stored_names(command: _Command) -> _Command:
    """A message with its names as they are stored, so that what is kept is found again by them."""
    together = "".join(_reader_of(type(command))(command))
    if together.isascii() and len(together) <= MAX_NAME_BYTES and "\0" not in together:
        return command  # nearly all of them: none of the names is longer than all
    changes: dict[str, str] = {}
    for field in _names_of(type(command)):
        name = getattr(command, field)
        stored = storable(name) if field == "lease_id" else stored_name(name)
        if stored != name:
            changes[field] = stored
    return structs.replace(command, **changes) if changes else command


@cache
def _reader_of(command: type[Struct]) -> Callable[[Struct], tuple[str, ...]]:
    return attrgetter(*_names_of(command))


@cache
def _names_of(command: type[Struct]) -> tuple[str, ...]:
    fields = command.__struct_fields__
    return tuple(field for field in fields if field == "lease_id" or field in _NAMES)
