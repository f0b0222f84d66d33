"""docs/auth.md: its table is the code's, and its examples run against a gateway and an auth
worker."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from auth_worker.principals.key_definition import FIELDS
from auth_worker.principals.roles import ROLE_SCOPES, SCOPES
from auth_worker.records.operations import AuditAction
from gateway.http.access.route_rules import ROUTE_RULES
from tests.fakes import fork_client
from tests.fakes.fork_server import COMMANDS, fork_server
from tests.fakes.running_gateway import running_gateway

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "auth.md").read_text(encoding="utf-8")
ADMIN_SECRET = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"
PYTHON_EXAMPLE = "\n".join(
    [
        "import os",
        "admin_key, url = os.environ['PENSTOCK_ADMIN_KEY'], os.environ['PENSTOCK_URL']",
        *re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL),
    ]
)
README_PRICE = "penstock prices create '*' --prompt 0.5 --completion 1.5"
WHAT_IS_LEFT = """
penstock prices list --json | jq -c 'map(select(.is_ended | not) | .models)'
echo "$PENSTOCK_DATA_DIR"
"""
WAIT_S = 600.0  # seventy commands, each a process, on a machine that others use as well


def test_the_table_of_roles_is_the_one_of_the_code() -> None:
    head, _, *rows = re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)[: 2 + len(SCOPES)]
    roles = [cell.strip() for cell in head.strip("|").split("|")][2:]
    assert roles == list(ROLE_SCOPES)
    on_the_page = {}
    for row in rows:
        scope, _, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        on_the_page[scope.strip("`")] = {
            role for role, cell in zip(roles, cells, strict=True) if cell == "yes"
        }
        assert set(cells) <= {"yes", "no"}, row
    assert on_the_page == {
        scope: {role for role, scopes in ROLE_SCOPES.items() if scope in scopes} for scope in SCOPES
    }


def test_every_route_stands_beside_its_scope() -> None:
    lines = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
    for path, rule in ROUTE_RULES.items():
        if rule.scope is None:
            continue
        line = re.sub(r"{[^}]*}", "{id}", lines[rule.scope])
        named, template = re.findall(r"`(/[^`]+)`", line), re.sub(r"{[^}]*}", "{id}", path)
        is_below = "and below" in line and any(template.startswith(f"{one}/") for one in named)
        assert is_below or template in named, path


def test_every_field_and_action_is_on_the_page() -> None:
    for name in FIELDS | set(get_args(AuditAction)):
        assert f"`{name}`" in PAGE, name


@pytest.mark.process
@pytest.mark.timeout(WAIT_S + 60.0)
async def test_the_examples_run_in_order(socket_dir: Path, tmp_path: Path) -> None:
    for tool in ("bash", "curl", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    data_dir = tmp_path / "data"
    examples = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script = "\n".join((README_PRICE, *examples, WHAT_IS_LEFT))
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    client = [sys.executable, "-IS", fork_client.__file__, fork_server(COMMANDS), "penstock"]
    (bin_dir / "penstock").write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
    (bin_dir / "penstock").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/auth",
        "PENSTOCK_DATA_DIR": str(data_dir),
        "PENSTOCK_ADMIN_KEY": ADMIN_SECRET,
    }
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "auth_worker", env=environment
        )
        try:
            await gateway.until(
                lambda: any(
                    peer.role == "auth" and peer.takes_work for peer in gateway.application.peers()
                ),
                timeout_s=30.0,
            )
            await gateway.engine(model="penstock-demo")
            done = await asyncio.to_thread(
                subprocess.run,
                ["bash", "-euxo", "pipefail", "-c", script],
                env={**environment, "PENSTOCK_URL": str(gateway.client.base_url)},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                check=False,
            )
            shown = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", PYTHON_EXAMPLE],
                env={**environment, "PENSTOCK_URL": str(gateway.client.base_url)},
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                check=False,
            )
        finally:
            worker.terminate()
            await asyncio.wait_for(worker.wait(), WAIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.fullmatch(r"psk-[\w-]{43}\n", shown.stdout), shown.stderr
        (example,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        error = json.loads(example)["error"]
        refused = json.loads((tmp_path / "refused.json").read_text(encoding="utf-8"))["error"]
        assert (set(refused), set(refused["limit"])) == (set(error), set(error["limit"]))
        assert "is revoked" in done.stdout
        # The shell goes on with the folder of the server, and without the prices of the examples.
        assert done.stdout.endswith(f'["*"]\n{data_dir}\n')
        assert "audit log hold" in done.stdout
        # Nothing that is kept holds a secret.
        log = (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
        secrets = re.findall(r"psk-[\w-]{43}", done.stderr)
        assert secrets
        assert not any(secret in log for secret in [*secrets, ADMIN_SECRET])
