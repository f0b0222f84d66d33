"""A filtered page of the audit log ends where the log ends, and nowhere else in silence."""

from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from fastapi import Request

from gateway.errors import RequestTooLargeError
from gateway.http.organization import shapes
from gateway.http.routes import organization_audit
from protocol.wire.messages import Actor, AuditPage, AuditRecord, ReadAudit

SCANNED = organization_audit._SCANNED_PAGE * organization_audit._MAX_SCANNED_PAGES
RARE = ("key_suspended", "key_rotated")
"""Both are `api_key.updated` there, so the auth worker can't look for that alone."""


class Log:
    """An auth worker with so many entries, of which some are others than the rest."""

    def __init__(self, num_entries: int, rare: dict[int, str]) -> None:
        self.entries = [
            AuditRecord(
                seq=seq,
                at_ms=seq,
                actor=f"key_{seq % 2}",
                action=rare.get(seq, "request_refused"),
                subject=f"team_{seq % 3}",
                detail="{}",
                previous_hash=b"",
                hash=b"",
            )
            for seq in range(num_entries, 0, -1)
        ]
        self.asked: list[ReadAudit] = []

    async def administer(self, question: ReadAudit, _kind: Any) -> AuditPage:
        self.asked.append(question)
        fits = [
            entry
            for entry in self.entries
            if (question.after_seq is None or entry.seq < question.after_seq)
            and question.action in ("", entry.action)
            and question.actor in ("", entry.actor)
            and question.key_id in ("", entry.actor, entry.subject)
        ]
        return AuditPage(
            request_id=question.request_id,
            entries=tuple(fits[: question.limit]),
            has_more=len(fits) > question.limit,
        )


async def page(monkeypatch: pytest.MonkeyPatch, log: Log, **query: Any) -> dict[str, Any]:
    names = {"types": "event_types[]", "actors": "actor_ids[]", "subjects": "resource_ids[]"}
    text = urlencode({names.get(name, name): value for name, value in query.items()}, doseq=True)
    scope = {"type": "http", "query_string": text.encode(), "state": {"request_id": "r"}}
    monkeypatch.setattr(organization_audit, "parts_of", lambda _request: SimpleNamespace(auth=log))
    monkeypatch.setattr(organization_audit, "actor_of", lambda _request: Actor(key_id="key_1"))
    answer = await organization_audit.list_audit_logs(Request(scope))
    found: dict[str, Any] = orjson.loads(answer.body)
    return found


async def all_of(monkeypatch: pytest.MonkeyPatch, log: Log, **query: Any) -> list[str]:
    """What OpenAI's client finds: it goes on behind the last entry of a page that has more."""
    ids: list[str] = []
    after: dict[str, Any] = {}
    while True:
        found = await page(monkeypatch, log, **query, **after)
        ids += [entry["id"] for entry in found["data"]]
        if not found["has_more"] or not found["data"]:
            return ids
        after = {"after": found["data"][-1]["id"]}


async def test_what_lies_behind_the_entries_of_one_page_is_not_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rare = {SCANNED + 5: RARE[0], 8: RARE[1], 3: RARE[0]}
    log = Log(SCANNED + 10, rare)
    first = await page(monkeypatch, log, types=["api_key.updated"])
    assert [entry["id"] for entry in first["data"]] == [f"audit_log-{SCANNED + 5}"]
    assert first["has_more"]
    found = await all_of(monkeypatch, log, types=["api_key.updated"])
    assert found == [f"audit_log-{seq}" for seq in rare]


async def test_a_page_that_found_nothing_so_far_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(SCANNED + 10, {3: RARE[0]})
    with pytest.raises(RequestTooLargeError, match="effective_at"):
        await page(monkeypatch, log, types=["api_key.updated"])


async def test_the_end_of_the_log_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(50, {3: RARE[0]})
    found = await page(monkeypatch, log, types=["api_key.updated"])
    assert ([one["id"] for one in found["data"]], found["has_more"]) == (["audit_log-3"], False)
    found = await page(monkeypatch, log, types=["api_key.created"])
    assert (found["data"], found["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"types": ["api_key.created"]}, [SCANNED, 3]),
        ({"types": ["budget_raised"]}, [2]),
        ({"actors": ["key_environment"]}, []),
        ({"subjects": ["team_9"]}, []),
    ],
)
async def test_one_value_is_looked_for_by_the_auth_worker_however_long_the_log_is(
    monkeypatch: pytest.MonkeyPatch, query: dict[str, Any], wanted: list[int]
) -> None:
    rare = {SCANNED: "key_created", 3: "key_created", 2: "budget_raised"}
    log = Log(SCANNED + 10, rare)
    found = await page(monkeypatch, log, **query)
    assert [entry["id"] for entry in found["data"]] == [f"audit_log-{seq}" for seq in wanted]
    assert not found["has_more"]
    assert len(log.asked) == 1


async def test_what_was_done_by_a_subject_is_not_what_was_done_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = await page(monkeypatch, Log(50, {}), subjects=["key_1"])
    assert found["data"] == []


@pytest.mark.parametrize("action", [*shapes._EVENT_OF, "budget_raised", "key.created"])
def test_every_action_is_among_those_of_its_event(action: str) -> None:
    assert action in shapes.actions_of(shapes.event_type(action))
    for other in shapes.actions_of(shapes.event_type(action)):
        assert shapes.event_type(other) == shapes.event_type(action)
