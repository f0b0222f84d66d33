"""The one life of a request: what ends it, and what is left of it."""

from typing import Any, cast

import pytest

from gateway.errors import ClientDisconnectedError
from gateway.request.callers.caller import Caller
from gateway.request.callers.identity import IdentityTable
from gateway.request.lifecycle.request import Request
from gateway.request.lifecycle.sessions import SessionTable
from gateway.request.lifecycle.work import SimpleWork


class _Work(SimpleWork):
    endpoint = "/tokenize"
    model = "demo"
    has_begun = False
    runs = 0

    async def run(self) -> None:
        self.runs += 1


class _NobodyIsAsked:
    """An auth link or an outbox that must not be needed."""


def request_of(work: _Work, sessions: SessionTable) -> Request:
    nobody = cast(Any, _NobodyIsAsked())
    return Request(
        work,
        request_id="r",
        scope="chat.completions",
        caller=Caller(None, "127.0.0.1", ""),
        auth=nobody,
        outbox=nobody,
        identities=IdentityTable(),
        sessions=sessions,
        check_open=lambda: None,
        too_late=lambda _model: ClientDisconnectedError("late"),
        timeout_s=9.0,
    )


async def test_a_client_that_left_before_the_start_is_nobodys_work_and_no_session() -> None:
    work, sessions = _Work(), SessionTable()
    request = request_of(work, sessions)
    request.on_client_gone()
    with pytest.raises(ClientDisconnectedError):
        await request.start()
    assert (work.runs, len(sessions), request.outcome) == (0, 0, "aborted")
