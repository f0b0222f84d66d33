"""The OpenAPI document is true: schemathesis calls every route by it, and finds nothing.

All its checks, against a real gateway and a real auth worker with scripted engines and parsers:
no 5xx, no status, media type or shape of an answer that the document doesn't know, no wrong input
that is accepted, no good input that is refused, no `Allow` that isn't so, no route without its key.
`schemathesis.toml` says what is left out, and why.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.running_gateway import running_gateway

pytestmark = [pytest.mark.process, pytest.mark.asyncio]

CONFIG = Path(__file__).with_name("schemathesis.toml")
SHORT = ("--phases", "examples,coverage")
PLUGIN = """
TOOLS = [{
    "name": "now",
    "parameters": {"type": "object", "properties": {}},
    "call": lambda: "noon",
}]
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool, so that there is something to be run."""
    info = tmp_path / "a_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-tool\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.tools]\na = a_tool_plugin:TOOLS\n")
    (tmp_path / "a_tool_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("options", "least"),
    [
        pytest.param(SHORT, 150, id="short"),
        pytest.param(
            ("--phases", "examples,coverage,fuzzing", "-n", "25"),
            150,
            id="long",
            marks=pytest.mark.long,
        ),
        # What one route answers is asked of others: ids that were made, listed, deleted.
        pytest.param(("--phases", "stateful", "-n", "60"), 50, id="chains", marks=pytest.mark.long),
    ],
)
async def test_schemathesis_finds_nothing(
    options: tuple[str, ...], least: int, socket_dir: Path, tmp_path: Path, plugin: None
) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
    ):
        await gateway.parser()
        await gateway.engine(tool_format="hermes", tokenizer_info_json='{"eos_token": "</s>"}')
        report = tmp_path / "report.json"
        is_sample = options == SHORT
        hooks = {"SCHEMATHESIS_HOOKS": "tests.fakes.schemathesis_sample"} if is_sample else {}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"),
            *(f"{gateway.client.base_url}/openapi.json", "--no-color", "--checks", "all"),
            *("-H", f"Authorization: Bearer {auth.admin_key}", *options),
            *("--report", "json", "--report-json-path", str(report)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            env={**os.environ, **hooks},
        )
        output, _ = await process.communicate()
        found = json.loads(report.read_text(encoding="utf-8"))
        assert process.returncode == 0, output.decode(errors="replace")
        assert found["test_cases"]["generated"] > found["operations"]["tested"] > least
