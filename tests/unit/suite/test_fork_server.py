"""Processes that are forked with their imports done behave as those that Python starts."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes import fork_client
from tests.fakes.fork_server import Forked, fork_server

PRELOADED = ("json",)


def test_what_it_says_and_its_exit_code_are_its_own() -> None:
    process = Forked(
        "json.tool", preloaded=PRELOADED, environ=dict(os.environ), stderr=subprocess.PIPE
    )
    _, said = process.communicate(30)
    assert "Expecting value" in said
    assert (process.wait(), process.poll()) == (1, 1)
    process.kill()  # nobody's id any more


def test_its_files_may_be_bounded(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+b") as said:
        process = Forked(
            "json.tool",
            preloaded=PRELOADED,
            environ=dict(os.environ),
            stderr=said,
            max_file_bytes=10,
        )
        assert process.wait(60) != 0
        assert said.seek(0, os.SEEK_END) == 10


def test_a_command_reads_and_writes_what_its_shell_gives_it(tmp_path: Path) -> None:
    client = [sys.executable, "-IS", fork_client.__file__, fork_server(PRELOADED), "json.tool"]
    done = subprocess.run(
        [*client, "--compact"],
        input='{"a": 1}',
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"a":1}\n', "")
