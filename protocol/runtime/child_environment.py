"""What processes get of the environment of who starts them: nothing that is meant for others."""

from collections.abc import Collection, Mapping

_NAMES = frozenset({"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV"})
_PREFIXES = ("LC_", "PYTHON")
_OURS = "PENSTOCK_"
_OURS_TOO = frozenset({"MODEL_PATH", "MODEL_NAME", "TOKENIZER_PATH"})


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


def without_settings(environ: Mapping[str, str], kept: Collection[str] = ()) -> dict[str, str]:
    """An environment without settings of ours, for servers that have nothing to do with others.

    A shell, or a container, that serves in production names its database, its keys and its address
    there; a server for a batch, a measurement or a test must not take part in that.

    Args:
        environ: The environment of who starts it.
        kept: Settings that stay, by their names.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in kept or not (name.startswith(_OURS) or name in _OURS_TOO)
    }
