"""Checks of single fields that an administrator sets; each names the field that is wrong."""

from collections.abc import Callable
from typing import Any, Final

from auth_worker.errors import InvalidCommandError

Check = Callable[[str, Any], None]
"""Takes a field's name and value; raises `InvalidCommandError`, whose `param` is the name."""

MAX_NAME_CHARS: Final = 200
MAX_TAGS: Final = 32
MAX_TAG_CHARS: Final = 64
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_NAME_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512
MAX_LIST_ENTRIES: Final = 100
MAX_GLOB_CHARS: Final = 200
MAX_LIMIT: Final = 2**53 - 1  # what every JSON reader keeps exact
LAST_SECOND: Final = 253_402_300_799
"""The end of year 9999, in Unix seconds: no calendar goes further. Milliseconds of today do."""


def require(holds: bool, param: str, rule: str) -> None:
    """Refuse a field that breaks its rule.

    Raises:
        InvalidCommandError: It does.
    """
    if not holds:
        raise InvalidCommandError(f"'{param}' {rule}.", param=param)


def text_of(max_chars: int, *, is_needed: bool = False) -> Check:
    """A check of texts of so many printable characters."""
    least = 1 if is_needed else 0

    def check(name: str, value: str) -> None:
        require(
            least <= len(value) <= max_chars and _is_printable(value),
            name,
            f"must have {least} to {max_chars} printable characters",
        )

    return check


def check_limit(name: str, value: int | None) -> None:
    """A number that is no limit when it is null, and lets nothing through when it is 0."""
    require(value is None or 0 <= value <= MAX_LIMIT, name, f"must be 0 to {MAX_LIMIT}, or null")


def check_globs(name: str, value: tuple[str, ...] | None) -> None:
    """Patterns such as `demo*`."""
    check_length(name, value)
    for glob in value or ():
        require(
            0 < len(glob) <= MAX_GLOB_CHARS and _is_printable(glob),
            name,
            f"takes patterns of 1 to {MAX_GLOB_CHARS} printable characters",
        )


def check_tags(name: str, value: tuple[str, ...]) -> None:
    """Tags to find something by."""
    require(
        len(value) <= MAX_TAGS
        and all(0 < len(tag) <= MAX_TAG_CHARS and _is_printable(tag) for tag in value),
        name,
        f"takes at most {MAX_TAGS} tags of 1 to {MAX_TAG_CHARS} printable characters",
    )


def check_metadata(name: str, value: dict[str, str]) -> None:
    """Texts that mean nothing to us."""
    require(
        len(value) <= MAX_METADATA_PAIRS
        and all(
            0 < len(key) <= MAX_METADATA_NAME_CHARS
            and len(text) <= MAX_METADATA_VALUE_CHARS
            and _is_printable(key)
            and _is_encodable(text)
            for key, text in value.items()
        ),
        name,
        f"takes at most {MAX_METADATA_PAIRS} texts of {MAX_METADATA_VALUE_CHARS} characters under"
        f" names of 1 to {MAX_METADATA_NAME_CHARS}",
    )


def check_length(name: str, value: tuple[str, ...] | None) -> None:
    """A list of a bounded number of entries."""
    require(
        value is None or len(value) <= MAX_LIST_ENTRIES,
        name,
        f"takes at most {MAX_LIST_ENTRIES} entries",
    )


def _is_printable(text: str) -> bool:
    return text.isprintable() and _is_encodable(text)


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
