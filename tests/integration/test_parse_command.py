"""The `penstock parse` command, from pipe to pipe."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_command_parses_what_comes_through_a_pipe(tmp_path: Path) -> None:
    text = '<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call>'
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "parse", "--format", "hermes", "--reasoning", "think"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["content"], found["reasoning"]) == (None, "hm")
    assert found["tool_calls"][0]["function"]["name"] == "f"
