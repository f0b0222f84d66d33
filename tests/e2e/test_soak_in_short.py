"""The soak of `make soak`, in short: under load, engines, a parser and auth die and nobody
notices."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.soak.accounts import TOLD
from tests.soak.chaos import FaultKind
from tests.soak.run import SoakOptions, soak

pytestmark = pytest.mark.process

LEFT = "the stream ended before its usage: left"
FAULTS = (FaultKind("auth", "kill"), FaultKind("engine", "cut"))
"""Of which none takes an engine's start: that killed engines and parsers are noticed by nobody,
test_when_something_dies.py shows as well."""
MORE_FAULTS = (FaultKind("engine", "kill"), FaultKind("toolparser", "kill"), *FAULTS)


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(FAULTS, id="some"),
        pytest.param(MORE_FAULTS, id="all", marks=pytest.mark.long),
    ],
)
async def test_no_stream_fails_while_engines_parsers_and_auth_die_in_turn(
    cache_dir: Path, faults: tuple[FaultKind, ...]
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    options = SoakOptions(
        directory=directory,
        cache_dir=cache_dir,
        chaos_s=1.0,
        # As many as keep both engines at work: more only make the restarts slower.
        num_clients=6,
        faults=faults,
        num_tokens=96,
        pause_s=0.3,
    )
    findings, page = await soak(options)
    assert findings.is_clean, page
    assert {fault.kind for fault in findings.faults} == set(faults), page
    assert any(fault.kind.role == "engine" and fault.counts for fault in findings.faults), page
    assert findings.settled_completion_tokens == findings.ledger.delivered_completion_tokens
    assert findings.settled_prompt_tokens == findings.ledger.delivered_prompt_tokens
    # Answer by answer, too; only what was under way to a client that left is charged and not told.
    told = {cause: one for cause, one in findings.accounts.items() if cause != LEFT}
    assert told[TOLD].settled == findings.settled_completion_tokens, page
    assert not any(one.difference for one in told.values()), page
    shutil.rmtree(directory)
