"""Helper processes give way, also where Linux divides the cores between sessions."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.runtime import give_way, helper_process


class Session:
    """The file of a session's niceness, which refuses the first changes."""

    def __init__(self, *refusals: OSError) -> None:
        self.refusals = list(refusals)
        self.written: list[str] = []

    def write_text(self, text: str, **_: Any) -> int:
        if self.refusals:
            raise self.refusals.pop(0)
        self.written.append(text)
        return len(text)


@pytest.fixture
def niceness(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What this process would be made; it leads its session and doesn't wait."""
    told: list[int] = []
    monkeypatch.setattr(os, "nice", told.append)
    monkeypatch.setattr(os, "getsid", lambda _pid: os.getpid())
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return told


@pytest.mark.parametrize(
    ("refusals", "written"),
    [
        ((), ["5"]),
        # Linux takes such changes one at a time.
        ((BlockingIOError(), BlockingIOError()), ["5"]),
        ((FileNotFoundError(),), []),
        ((PermissionError(),), []),
    ],
)
def test_who_leads_a_session_makes_all_of_it_nice(
    niceness: list[int], refusals: tuple[OSError, ...], written: list[str]
) -> None:
    session: Any = Session(*refusals)
    give_way.give_way(session=session)
    assert niceness == [5]
    assert session.written == written


def test_a_session_that_takes_no_change_is_not_waited_for_forever(niceness: list[int]) -> None:
    session: Any = Session(*[BlockingIOError() for _ in range(1000)])
    give_way.give_way(session=session)
    assert session.written == []


def test_nobody_else_s_session_is_made_nice(
    niceness: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getsid", lambda _pid: os.getpid() + 1)
    session: Any = Session()
    give_way.give_way(session=session)
    assert (niceness, session.written) == ([5], [])


def test_the_module_runs_as_if_it_had_been_named_alone(
    niceness: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    (tmp_path / "a_helper.py").write_text(
        "import pathlib, sys\n"
        f"pathlib.Path({str(told)!r}).write_text(f'{{__name__}} {{sys.argv[1:]}}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "getsid", lambda _pid: os.getpid() + 1)
    monkeypatch.setattr(sys, "argv", ["give_way", "a_helper", "7"])
    give_way.main()
    assert told.read_text() == "__main__ ['7']"
    assert niceness == [5]


def test_a_helper_leads_a_session_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of one that it shares with its parent it could give nothing to other processes.
    started: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started.append((command, how)))
    _, connection = helper_process.start_helper("a.helper")
    connection.close()
    ((command, how),) = started
    assert command[1:5] == ["-P", "-m", "protocol.runtime.give_way", "a.helper"]
    assert how["start_new_session"] is True
