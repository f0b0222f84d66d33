"""What helper processes get of the environment of who starts them: no secret of anybody's."""

from collections.abc import Collection, Mapping

_NAMES = frozenset({"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV"})
_PREFIXES = ("LC_", "PYTHON")


def child_environment(environ: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """What a Python process needs to start, and what is named beside it.

    Args:
        environ: The environment of who starts it.
        also: More names.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in _NAMES or name in also or name.startswith(_PREFIXES)
    }
