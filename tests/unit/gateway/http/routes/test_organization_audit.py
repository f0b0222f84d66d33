"""OpenAI's filters of the audit log are those of one question to the auth worker."""

from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from fastapi import Request

from gateway.errors import InvalidRequestError
from gateway.http.organization import shapes
from gateway.http.routes.organization import audit
from protocol.wire.messages import Actor, AuditPage, AuditRecord, ReadAudit


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
            and (not question.actions or entry.action in question.actions)
            and (not question.actors or entry.actor in question.actors)
            and (not question.subjects or entry.subject in question.subjects)
        ]
        return AuditPage(
            request_id=question.request_id,
            entries=tuple(fits[: question.limit]),
            has_more=len(fits) > question.limit,
        )


async def page(monkeypatch: pytest.MonkeyPatch, log: Log, **query: Any) -> dict[str, Any]:
    names = {
        "types": "event_types[]",
        "actors": "actor_ids[]",
        "resource_ids": "resource_ids[]",
        "project_ids": "project_ids[]",
    }
    text = urlencode({names.get(name, name): value for name, value in query.items()}, doseq=True)
    scope = {"type": "http", "query_string": text.encode(), "state": {"request_id": "r"}}
    monkeypatch.setattr(audit, "parts_of", lambda _request: SimpleNamespace(auth=log))
    monkeypatch.setattr(audit, "actor_of", lambda _request: Actor(key_id="key_1"))
    answer = await audit.list_audit_logs(Request(scope))
    found: dict[str, Any] = orjson.loads(answer.body)
    return found


async def test_every_filter_goes_to_the_auth_worker_with_all_its_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a page is one question, however rare what is looked for."""
    log = Log(30_000, {25_000: "key_suspended", 3: "key_rotated", 2: "key_created"})
    found = await page(monkeypatch, log, types=["api_key.updated", "api_key.created"])
    assert [entry["id"] for entry in found["data"]] == [
        f"audit_log-{seq}" for seq in (25_000, 3, 2)
    ]
    assert (found["has_more"], len(log.asked)) == (False, 1)
    found = await page(
        monkeypatch,
        log,
        types=["api_key.updated"],
        actors=["key_1", "key_7"],
        resource_ids=["team_0"],
        project_ids=["team_2"],
    )
    assert [entry["id"] for entry in found["data"]] == ["audit_log-3"]
    assert len(log.asked) == 2


async def test_pages_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(50, {30: "key_suspended", 20: "key_rotated", 10: "key_updated"})
    first = await page(monkeypatch, log, types=["api_key.updated"], limit="2")
    assert ([entry["id"] for entry in first["data"]], first["has_more"]) == (
        ["audit_log-30", "audit_log-20"],
        True,
    )
    after = {"after": first["last_id"]}
    last = await page(monkeypatch, log, types=["api_key.updated"], limit="2", **after)
    assert ([entry["id"] for entry in last["data"]], last["has_more"]) == (["audit_log-10"], False)


async def test_a_filter_has_a_bounded_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [f"key_{number}" for number in range(audit._MAX_VALUES + 1)]
    with pytest.raises(InvalidRequestError) as refused:
        await page(monkeypatch, Log(1, {}), actors=values)
    assert refused.value.param == "actor_ids[]"


async def test_what_was_done_by_a_subject_is_not_what_was_done_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = await page(monkeypatch, Log(50, {}), resource_ids=["key_1"])
    assert found["data"] == []


@pytest.mark.parametrize("action", [*shapes._EVENT_OF, "budget_raised", "key.created"])
def test_every_action_is_among_those_of_its_event(action: str) -> None:
    assert action in shapes.actions_of(shapes.event_type(action))
    for other in shapes.actions_of(shapes.event_type(action)):
        assert shapes.event_type(other) == shapes.event_type(action)
