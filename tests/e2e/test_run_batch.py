"""`penstock run-batch` at a running server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Harness, eventually

pytestmark = pytest.mark.process


def test_a_file_of_requests_is_answered_good_and_bad(harness: Harness, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    bodies = [
        (
            "/v1/chat/completions",
            {"model": "penstock-demo", "messages": messages, "temperature": 0},
        ),
        ("/v1/completions", {"model": "penstock-demo", "prompt": "One, two,", "max_tokens": 3}),
        ("/v1/chat/completions", {"model": "penstock-demo", "messages": messages, "n": 0}),
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(
            json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": body}) + "\n"
            for i, (url, body) in enumerate(bodies)
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "penstock", "run-batch", str(source), str(target)]
    done = subprocess.run(
        [*command, "--url", harness.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "2 answered, 1 failed" in done.stderr
    answers = {
        answer["custom_id"]: answer["response"]
        for answer in map(json.loads, target.read_text(encoding="utf-8").splitlines())
    }
    assert list(answers) == ["0", "1", "2"]  # the input's order, whoever was ready first
    assert "42" in answers["0"]["body"]["choices"][0]["message"]["content"]
    assert answers["1"]["body"]["object"] == "text_completion"
    assert (answers["2"]["status_code"], answers["2"]["body"]["error"]["param"]) == (400, "n")

    # Again: only what failed is asked, and the file holds one answer of each.
    again = subprocess.run(
        [*command, "--url", f"{harness.url}/v1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "0 answered, 1 failed, 2 were answered before" in again.stderr
    ids = [json.loads(line)["custom_id"] for line in target.read_text("utf-8").splitlines()]
    assert ids == ["0", "1", "2"]


def deployed(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that is set up for another deployment."""
    settings = {
        "PENSTOCK_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/production",
        "PENSTOCK_STORE_URL": "postgresql://nobody@127.0.0.1:1/production",
        "PENSTOCK_UDS": str(tmp_path / "http.sock"),
        "PENSTOCK_ALLOWED_HOSTS": "api.example",
        "PENSTOCK_AUDIT_KEY_FILE": str(tmp_path / "missing"),
    }
    return {**os.environ, **settings}


# The next test shows the same of a command that goes on.
@pytest.mark.long
def test_its_own_server_has_nothing_to_do_with_the_deployment_of_the_shell(
    cache_dir: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "One, two,", "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    source.write_text(json.dumps(line) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "penstock", "run-batch", str(source), str(target)]
    done = subprocess.run(
        [*command, "--cache-dir", str(cache_dir)],
        env=deployed(tmp_path),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(target.read_text("utf-8"))["response"]["status_code"] == 200
    assert not (tmp_path / "http.sock").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_its_own_server_killed_with_it_goes_on_with_what_it_had_written(
    cache_dir: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"{number}, two,", "max_tokens": 150, "ignore_eos": True},
        }
        for number in range(24)
    ]
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "penstock", "run-batch", str(source), str(target)]
    command += ["--cache-dir", str(cache_dir), "--concurrency", "2"]

    def written() -> list[bytes]:
        """What the server has so far, but for a half line."""
        found = (tmp_path / "out.jsonl.penstock-run").glob("batches/*/*/output.jsonl")
        return [line for path in found for line in path.read_bytes().split(b"\n")[:-1]]

    # Its engine has fewer programs to compile then, those of other deployments here.
    computes = {"PENSTOCK_DETERMINISTIC": "true"}
    first = subprocess.Popen(command, env={**os.environ, **computes}, stderr=subprocess.PIPE)
    eventually(lambda: len(written()) >= 3, 150)
    first.kill()
    first.communicate()
    # Its server ends by itself, and the next command begins at once.
    kept = written()
    assert (tmp_path / "out.jsonl.penstock-run").stat().st_mode & 0o777 == 0o700
    assert 3 <= len(kept) < 24
    # Its own server has nothing to do with the deployment that a shell is set up for.
    done = subprocess.run(
        command,
        env=deployed(tmp_path) | computes,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "http.sock").exists()
    assert "24 answered, 0 failed, 0 were answered before" in done.stderr
    answers = target.read_bytes().splitlines()
    assert [json.loads(answer)["custom_id"] for answer in answers] == [f"c{n}" for n in range(24)]
    assert set(kept) <= set(answers)
    assert not (tmp_path / "out.jsonl.penstock-run").exists()


def test_a_wrong_line_is_said_before_a_server_is_started(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    source.write_text(json.dumps(line | {"body": {"stream": True}}), encoding="utf-8")
    command = [sys.executable, "-m", "penstock", "run-batch", str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "in.jsonl:1: A batch can't use `stream`" in done.stderr
