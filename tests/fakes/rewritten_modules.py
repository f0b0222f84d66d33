"""In a fresh clone, pytest rewrites the asserts of 500 modules: each process of a run does a share
first, and finds the rest done, instead of all of them everything."""

from pathlib import Path

import pytest
from _pytest.assertion import rewrite

# pytest offers no way to do this ahead; its major version is pinned, and where these are missing
# each process rewrites for itself.
_PARTS = (
    *("_read_pyc", "_rewrite_test", "_write_pyc", "try_makedirs"),
    *("assertstate_key", "get_cache_dir", "PYC_TAIL"),
)


def rewrite_share(config: pytest.Config, number: int, num_processes: int) -> None:
    """Put into the cache what isn't there of one process's share of the test modules."""
    if not all(hasattr(rewrite, part) for part in _PARTS):
        return
    state = config.stash[rewrite.assertstate_key]
    for path in _modules(config)[number::num_processes]:
        folder = rewrite.get_cache_dir(path)
        cached = folder / (path.stem + rewrite.PYC_TAIL)
        if rewrite._read_pyc(path, cached) is None and rewrite.try_makedirs(folder):
            found, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, found, cached)


def _modules(config: pytest.Config) -> list[Path]:
    """Those that the command line names."""
    named = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    found = (path.rglob("test_*.py") if path.is_dir() else [path] for path in named)
    return sorted({path for paths in found for path in paths})
