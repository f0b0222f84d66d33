"""In a fresh clone, pytest rewrites the asserts of 500 modules: several processes do it, before the
tests are collected, and what they did is found done."""

import os
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

# pytest offers no way to do this ahead; its major version is pinned, and where these are missing
# the asserts are rewritten as the modules are imported.
_PARTS = (
    *("_read_pyc", "_rewrite_test", "_write_pyc", "try_makedirs"),
    *("assertstate_key", "get_cache_dir", "PYC_TAIL"),
)


def rewrite_together(config: pytest.Config, num_processes: int) -> None:
    """Put into the cache what isn't there of the test modules; a share in each process."""
    if not all(hasattr(rewrite, part) for part in _PARTS):
        return
    missing = [path for path in _modules(config) if rewrite._read_pyc(path, _cached(path)) is None]
    pids = []
    for number in range(min(num_processes, len(missing))):
        pid = os.fork()
        if pid == 0:
            try:
                for path in missing[number::num_processes]:
                    _rewrite(config, path)
            finally:
                # What it left undone the first process does.
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def _cached(path: Path) -> Path:
    return Path(rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL))


def _rewrite(config: pytest.Config, path: Path) -> None:
    cached = _cached(path)
    if rewrite.try_makedirs(cached.parent):
        found, code = rewrite._rewrite_test(path, config)
        rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, found, cached)


def _modules(config: pytest.Config) -> list[Path]:
    """Those that the command line names."""
    named = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    found = (path.rglob("test_*.py") if path.is_dir() else [path] for path in named)
    return sorted({path for paths in found for path in paths})
