"""`penstock profile` at a running server: a trace on the engine's machine, for admins only."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process


def test_a_running_engine_records_a_trace(harness: Harness) -> None:
    command = [sys.executable, "-m", "penstock", "profile", "--seconds", "0.2"]
    command += ["--url", harness.url, "--data-dir", str(harness.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split(" (")[0])
    assert list(folder.rglob("*.xplane.pb"))


def test_only_admins_may_and_only_for_a_while(harness: Harness) -> None:
    url, body = f"{harness.url}/v1/admin/profile", {"model": "penstock-demo", "seconds": 61}
    assert httpx.post(url, json=body, trust_env=False).status_code == 401
    key = (harness.data_dir / "admin.key").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx.post(url, json=body, headers=headers, trust_env=False)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "seconds")
    reply = httpx.post(url, json={"model": "nobody"}, headers=headers, trust_env=False)
    assert reply.status_code == 404
