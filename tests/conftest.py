"""Fixtures for every test: a clean environment and short socket folders."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# transformers and the hub library must never reach for the network in a test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of ours leaks from the developer's shell into a test."""
    aliases = ("MODEL_PATH", "MODEL_NAME", "TOKENIZER_PATH")
    for name in list(os.environ):
        if name.startswith("PENSTOCK_") or name in aliases:
            monkeypatch.delenv(name)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder whose path is short enough for ipc sockets (tmp_path often is not)."""
    path = Path(tempfile.mkdtemp(prefix="pst-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
