"""Webhooks: what they are told, how it is signed, and what a target that misbehaves costs."""

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from auth_worker.errors import OutboundError
from auth_worker.outbound.exchange import Answer
from auth_worker.outbound.targets import TargetGuard
from auth_worker.outbound.webhook_message import message_of
from auth_worker.principals.key_rules import networks_of
from auth_worker.principals.keys import digest_of
from auth_worker.principals.webhooks import StoredWebhook, signing_key
from auth_worker.records.operations import AppendAudit, AuditEntry, AuditRows, ReadAuditRows
from auth_worker.serving.webhook_desk import BACKOFF_S, MAX_AGE_S, MAX_REFUSALS, WebhookDesk
from auth_worker.storage import audit_table
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    AuditRecord,
    ChangeResource,
    Failure,
    FindResources,
    KeySettings,
    KeysFound,
    MakeKey,
    MakeResource,
    Message,
    Resource,
    ResourcesFound,
    UpdateResource,
    WebhookSettings,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.executors import AtOnce

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
ADMIN = Actor(key_id="key_admin")
HOOK = WebhookSettings(
    name="ops", url="https://hooks.example/x", events=("key_*", "budget_*"), secret=SECRET
)


class Harness:
    """An auth worker's handler and store with a desk of webhooks, in the test's own thread."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.hooks: dict[str, StoredWebhook] = {}
        self.bench = AuthHandlerBench(directory, webhooks=self.hooks, **options)
        self.clock = self.bench.clock
        self.posted: list[tuple[str, Mapping[str, str], dict[str, Any]]] = []
        self.answer: Callable[[dict[str, Any]], int | OutboundError] = lambda event: 204
        self.desk = WebhookDesk(
            self.hooks,
            self._post,
            AtOnce(),
            submit=self.bench.handler.commit,
            clock=self.clock,
            call_soon=lambda function, *args: function(*args),
        )

    def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        event = json.loads(body)
        self.posted.append((url, headers, event))
        answer = self.answer(event)
        if isinstance(answer, OutboundError):
            raise answer
        return Answer(answer, b"")

    def ask(self, command: Any) -> Message:
        answer = self.bench.ask(command)
        if answer is not None:
            return answer
        (answer,) = self.bench.write()
        return answer

    def make(self, settings: WebhookSettings = HOOK) -> Resource:
        made = self.ask(
            MakeResource(request_id="m", actor=ADMIN, kind="webhook", settings=settings)
        )
        assert isinstance(made, ResourcesFound), made
        return made.resources[0]

    def show(self, webhook_id: str) -> Resource:
        found = self.ask(
            FindResources(request_id="f", actor=ADMIN, kind="webhook", resource_id=webhook_id)
        )
        assert isinstance(found, ResourcesFound), found
        return found.resources[0]

    def happen(self, action: str, subject: str = "key_1") -> None:
        entry = AuditEntry(int(self.clock.wall * 1000), "key_admin", action, subject)  # type: ignore[arg-type]
        self.bench.store.apply([AppendAudit(entry)])

    def tick(self) -> list[str]:
        """One look of the desk; the types of the events that were sent."""
        num_before = len(self.posted)
        self.desk.tick()
        self.bench.write()
        self.bench.write()
        return [event["type"] for _, _, event in self.posted[num_before:]]


def test_what_fits_is_sent_in_order_signed_and_only_once(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.happen("key_created", "key_before")
    made = harness.make()
    for action in ("key_revoked", "engine_profiled", "budget_raised"):
        harness.happen(action)
    assert harness.tick() == ["key_revoked", "budget_raised"]
    assert harness.tick() == []
    url, headers, event = harness.posted[0]
    assert url == HOOK.url
    assert set(event) == {"type", "timestamp", "data"}
    assert event["timestamp"].endswith("Z")
    assert (event["data"]["actor"], event["data"]["subject"]) == ("key_admin", "key_1")
    assert headers["webhook-id"].startswith(f"msg_{event['data']['seq']}_")
    assert headers["webhook-timestamp"] == str(int(harness.clock.wall))
    state = harness.show(made.resource_id).webhook
    assert state is not None
    assert state.after_seq >= harness.posted[-1][2]["data"]["seq"]
    assert (state.num_failed, state.last_error) == (0, "")
    assert state.last_delivered_at == int(harness.clock.wall)


@pytest.mark.parametrize("is_named", [False, True])
def test_settlements_of_money_are_told_to_whoever_names_them(
    tmp_path: Path, is_named: bool
) -> None:
    harness = Harness(tmp_path)
    events = ("*", "money_settled") if is_named else ("*",)
    harness.make(structs.replace(HOOK, events=events))
    for _ in range(150):  # more than a page
        harness.happen("money_settled", "")
    harness.happen("key_revoked")
    told: list[str] = []
    for _ in range(4):
        told += harness.tick()
    assert told.count("money_settled") == (150 if is_named else 0)
    assert told[-1] == "key_revoked"


def test_the_signature_is_the_one_of_standard_webhooks() -> None:
    entry = AuditRecord(
        seq=7,
        at_ms=1_674_087_231_000,
        actor="a",
        action="key_created",
        subject="s",
        detail='{"ü":1}',
        previous_hash=b"p" * 32,
        hash=b"h" * 32,
    )
    message = message_of(entry)
    headers = message.headers(SECRET, 1_674_087_240.9)
    assert message.message_id == "msg_7_6868686868686868"
    signed = b"msg_7_6868686868686868.1674087240." + message.body
    expected = base64.b64encode(hmac.new(KEY, signed, "sha256").digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(message.body)["data"]["detail"] == {"ü": 1}
    # Of another server, or of before a restore: the same number, and another message.
    other = message_of(structs.replace(entry, hash=b"i" * 32))
    assert other.message_id != message.message_id
    assert b"pppp" not in message.body


@pytest.mark.parametrize(
    ("secret", "is_good"),
    [
        (SECRET, True),
        ("whsec_" + base64.b64encode(b"s" * 24).decode(), True),
        ("whsec_" + base64.b64encode(b"s" * 23).decode(), False),
        ("whsec_" + base64.b64encode(b"s" * 65).decode(), False),
        (base64.b64encode(KEY).decode(), False),
        ("whsec_????", False),
        ("", False),
    ],
)
def test_what_a_secret_is(secret: str, is_good: bool) -> None:
    assert (signing_key(secret) is not None) is is_good


def test_what_is_not_taken_comes_again_later_and_later_under_the_same_id(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    made = harness.make()
    harness.happen("key_revoked")
    harness.happen("key_deleted")
    harness.answer = lambda event: OutboundError("hooks.example: connection refused")
    for pause_s in (*BACKOFF_S, BACKOFF_S[-1]):
        assert harness.tick() == ["key_revoked"]
        harness.clock.advance(pause_s - 1)
        assert harness.tick() == []
        harness.clock.advance(1)
    state = harness.show(made.resource_id).webhook
    assert state is not None
    assert state.num_failed == len(BACKOFF_S) + 1
    assert state.last_error == "hooks.example: connection refused"
    harness.answer = lambda event: 200
    assert harness.tick() == ["key_revoked", "key_deleted"]
    ids = {
        headers["webhook-id"]
        for _, headers, event in harness.posted
        if event["type"] == "key_revoked"
    }
    assert len(ids) == 1


def test_a_clock_that_was_set_back_holds_nothing_up(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.make()
    harness.happen("key_revoked")
    harness.answer = lambda event: 500
    harness.clock.wall += 86_400
    assert harness.tick() == ["key_revoked"]
    harness.answer = lambda event: 204
    harness.clock.wall -= 86_400
    assert harness.tick() == ["key_revoked"]


def test_what_waits_is_sent_after_a_restart(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.make()
    harness.happen("key_revoked")
    harness.answer = lambda event: 503
    assert harness.tick() == ["key_revoked"]
    harness.bench.store.close()
    again = Harness(tmp_path)
    again.hooks.update(
        (hook.webhook_id, hook) for hook in again.bench.store.load(recent_since_ms=0).webhooks
    )
    assert again.tick() == []
    again.clock.advance(BACKOFF_S[0])
    # The handler's bench makes its keys anew each time.
    assert again.tick()[0] == "key_revoked"


def test_an_entry_that_is_refused_again_and_again_is_given_up_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    made = harness.make()
    harness.happen("key_revoked")
    harness.happen("key_deleted")
    harness.answer = lambda event: 400 if event["type"] == "key_revoked" else 200
    sent = []
    for _ in range(MAX_REFUSALS + 1):
        sent += harness.tick()
        harness.clock.advance(BACKOFF_S[-1])
    assert sent == ["key_revoked"] * MAX_REFUSALS + ["key_deleted"]
    actions = [row.action for row in audit(harness)]
    assert actions.count("webhook_gave_up") == 1
    assert harness.show(made.resource_id).suspended_at is None


def test_an_entry_that_could_not_be_delivered_for_days_is_given_up(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.make()
    harness.happen("key_revoked")
    harness.answer = lambda event: OutboundError("away")
    harness.tick()
    harness.clock.advance(MAX_AGE_S + 1)
    harness.happen("key_deleted")
    harness.tick()
    harness.answer = lambda event: 200
    harness.clock.advance(BACKOFF_S[0])
    assert harness.tick() == ["key_deleted"]


def test_a_target_that_is_gone_for_good_is_suspended(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    made = harness.make()
    harness.happen("key_revoked")
    harness.answer = lambda event: 410
    assert harness.tick() == ["key_revoked"]
    assert harness.show(made.resource_id).suspended_at is not None
    harness.clock.advance(10**6)
    assert harness.tick() == []
    harness.answer = lambda event: 200
    back = ChangeResource(
        request_id="c",
        actor=ADMIN,
        kind="webhook",
        resource_id=made.resource_id,
        action="reactivate",
    )
    assert isinstance(harness.ask(back), ResourcesFound)
    assert harness.tick() == ["key_revoked"]


def test_redirects_are_refusals(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    made = harness.make()
    harness.happen("key_revoked")
    harness.answer = lambda event: 302
    assert harness.tick() == ["key_revoked"]
    state = harness.show(made.resource_id).webhook
    assert state is not None
    assert state.last_error == "it answered 302"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://hooks.example"}, None),
        ({"url": "https://127.0.0.1/x"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "ftp://x.example"}, "url"),
        ({"url": "https://u:p@x.example"}, "url"),
        ({"events": ()}, "events"),
        ({"events": ("x" * 65,)}, "events"),
        ({"secret": "short"}, "secret"),
        ({"name": ""}, "name"),
    ],
)
def test_a_wrong_definition_is_refused_by_the_name_of_its_field(
    tmp_path: Path, fields: dict[str, Any], param: str | None
) -> None:
    values = {name: getattr(HOOK, name) for name in WebhookSettings.__struct_fields__}
    harness = Harness(tmp_path)
    answer = harness.ask(
        MakeResource(
            request_id="m",
            actor=ADMIN,
            kind="webhook",
            settings=WebhookSettings(**{**values, **fields}),
        )
    )
    if param is None:  # a name is looked up when it is used
        assert isinstance(answer, ResourcesFound)
    else:
        assert isinstance(answer, Failure)
        assert answer.param == param
        assert harness.hooks == {}


def test_who_may_not_read_the_audit_log_has_none_of_it_sent(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    narrowed = harness.ask(
        MakeKey(
            request_id="k",
            actor=ADMIN,
            key_digest=digest_of("psk-hooks"),
            hint="h",
            settings=KeySettings(name="hooks", role="admin", scopes=("admin.webhooks",)),
        )
    )
    assert isinstance(narrowed, KeysFound)
    actor = Actor(key_id=narrowed.keys[0].key_id)
    refused = harness.ask(MakeResource(request_id="m", actor=actor, kind="webhook", settings=HOOK))
    assert isinstance(refused, Failure)
    assert refused.code is ErrorCode.PERMISSION_DENIED
    assert "admin.audit" in refused.message
    webhook_id = harness.make().resource_id
    widened = harness.ask(
        UpdateResource(
            request_id="u",
            actor=actor,
            kind="webhook",
            resource_id=webhook_id,
            settings=WebhookSettings(name="", url="", events=("*",), secret=SECRET),
            fields=("events",),
        )
    )
    assert isinstance(widened, Failure)
    assert harness.hooks[webhook_id].events == HOOK.events


def test_a_listed_address_is_a_target(tmp_path: Path) -> None:
    harness = Harness(tmp_path, targets=TargetGuard(networks_of(("127.0.0.0/8",))))
    assert harness.make(
        WebhookSettings(name="x", url="http://127.0.0.1:9/", events=("*",), secret=SECRET)
    )


def test_secrets_and_paths_of_addresses_are_shown_to_nobody(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    made = harness.make(
        WebhookSettings(name="x", url="https://h.example/T0/secret", events=("*",), secret=SECRET)
    )
    assert isinstance(made.settings, WebhookSettings)
    assert made.settings.secret == SECRET
    shown = harness.show(made.resource_id)
    assert isinstance(shown.settings, WebhookSettings)
    assert (shown.settings.secret, shown.settings.url) == ("", "https://h.example/T0/secret")
    other = f"whsec_{base64.b64encode(b'o' * 32).decode()}"
    changed = harness.ask(
        UpdateResource(
            request_id="u",
            actor=ADMIN,
            kind="webhook",
            resource_id=made.resource_id,
            fields=("secret", "events"),
            settings=WebhookSettings(name="", url="", events=("key_*",), secret=other),
        )
    )
    assert isinstance(changed, ResourcesFound)
    assert harness.hooks[made.resource_id].secret == other
    assert harness.hooks[made.resource_id].url == "https://h.example/T0/secret"
    text = "".join(row.detail for row in audit(harness))
    assert "whsec_" not in text
    assert "T0" not in text
    assert "h.example" in text
    assert SECRET not in repr(made)
    assert other not in repr(harness.hooks)


def audit(harness: Harness) -> list[AuditRecord]:
    from auth_worker.records.operations import AuditRows, ReadAuditRows

    (rows,) = harness.bench.store.apply([ReadAuditRows(1000)])
    assert isinstance(rows, AuditRows)
    return list(rows.entries)


def test_settlements_that_nobody_names_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_table, "LOOKED_AT", 10)
    harness = Harness(tmp_path)
    made = harness.make()
    hook = harness.hooks[made.resource_id]
    begin = hook.after_seq
    for _ in range(25):
        harness.happen("money_settled", "")
    harness.happen("key_created")
    harness.happen("money_settled", "")
    places = []
    while not (sent := harness.tick()):
        places.append(hook.after_seq - begin)
        assert len(places) < 5
    assert sent == ["key_created"]
    assert places == [10, 20]
    assert hook.after_seq == harness.posted[-1][2]["data"]["seq"] + 1
    harness.bench.store.close()


def test_a_page_without_one_action_says_how_far_it_looked(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    begin = harness.bench.store.apply([ReadAuditRows(1)])[0]
    assert isinstance(begin, AuditRows)
    (last, *_) = begin.entries
    for action in ("key_created", "money_settled", "key_created", "money_settled"):
        harness.happen(action)

    def look(limit: int, after_seq: int) -> tuple[int, int]:
        wanted = ReadAuditRows(
            limit, after_seq=after_seq, oldest_first=True, but_for="money_settled"
        )
        (page,) = harness.bench.store.apply([wanted])
        assert isinstance(page, AuditRows)
        return len(page.entries), page.through_seq - last.seq

    assert look(100, last.seq) == (2, 4)
    assert look(1, last.seq) == (1, 1)
    assert look(100, last.seq + 3) == (0, 4)
    assert look(100, last.seq + 4) == (0, 4)
    harness.bench.store.close()
