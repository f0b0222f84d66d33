"""A folder that looks like an installed package with tools."""

from pathlib import Path

import pytest

PLUGIN = """
import os, sys, time

print("loaded")


def crash():
    os._exit(3)


def read_standard_input():
    return sys.stdin.read()


TOOLS = [
    {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
        "call": lambda a, b: print("adding") or a + b,
    },
    {"name": "crash", "call": crash},
    {"name": "sleep", "call": lambda: time.sleep(600)},
    {"name": "long", "call": lambda: "x" * 5_000_000},
    {"name": "environment", "call": lambda: sorted(os.environ)},
    {"name": "read", "call": read_standard_input},
]
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like an installed package with tools."""
    info = tmp_path / "some_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.tools]\nsome = some_tools_plugin:TOOLS\n")
    (tmp_path / "some_tools_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "psk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-secret")
    monkeypatch.setenv("OTHER", "x")
    return tmp_path
