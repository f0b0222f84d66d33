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
FAULTS = (
    FaultKind("engine", "kill"),
    FaultKind("toolparser", "kill"),
    FaultKind("auth", "kill"),
    FaultKind("engine", "cut"),
)


# Of one fault after the other, and what was told of each stream with what is booked,
# test_when_something_dies.py shows the same.
@pytest.mark.long
@pytest.mark.timeout(420)
async def test_no_stream_fails_while_engines_parsers_and_auth_die_in_turn(cache_dir: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    options = SoakOptions(
        directory=directory,
        cache_dir=cache_dir,
        chaos_s=1.0,
        # As many as keep both engines at work: more only make the restarts slower.
        num_clients=6,
        faults=FAULTS,
        num_tokens=96,
        pause_s=0.3,
    )
    findings, page = await soak(options)
    assert findings.is_clean, page
    assert {fault.kind for fault in findings.faults} == set(FAULTS), page
    assert any(fault.kind.role == "engine" and fault.counts for fault in findings.faults), page
    assert findings.settled_completion_tokens == findings.ledger.delivered_completion_tokens
    assert findings.settled_prompt_tokens == findings.ledger.delivered_prompt_tokens
    # Answer by answer, too; only what was under way to a client that left is charged and not told.
    told = {cause: one for cause, one in findings.accounts.items() if cause != LEFT}
    assert told[TOLD].settled == findings.settled_completion_tokens, page
    assert not any(one.difference for one in told.values()), page
    shutil.rmtree(directory)
