"""Requests over limits while clients leave and processes are killed: `tests/soak/limits.py` in
short."""

from pathlib import Path

import pytest

from tests.soak.limits import BOTH, over_limits

pytestmark = pytest.mark.process


@pytest.mark.timeout(240)
async def test_nothing_is_overspent_and_the_ledger_is_what_the_engine_counted(
    socket_dir: Path,
) -> None:
    figures = await over_limits(socket_dir, 200, num_teams=4, victims=BOTH)
    assert figures.kills == dict.fromkeys(BOTH, 1)
    assert figures.statuses[200] > 0
    assert figures.statuses[402] + figures.statuses[429] > 0
    assert figures.num_looks > 0
    assert figures.completion_tokens > 0
