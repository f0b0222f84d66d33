"""What processes that the gateway starts get of its environment: no secret of anybody's."""

from collections.abc import Collection, Mapping

_NAMES = frozenset({"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"})
_PREFIXES = ("LC_", "PYTHON")


def child_environment(environ: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """What a Python process needs to start, and what is named beside it.

    Args:
        environ: The gateway's own environment.
        also: More names.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in _NAMES or name in also or name.startswith(_PREFIXES)
    }
