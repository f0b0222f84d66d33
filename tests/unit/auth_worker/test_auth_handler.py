"""Commands in, answers out: at once what needs no disk, after its commit what does."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from auth_worker.principals.keys import digest_of
from auth_worker.records.operations import AuditEntry, PutKey
from protocol.errors import ErrorCode
from protocol.runtime.logs import JsonFormatter
from protocol.wire.messages import (
    Actor,
    Adjust,
    Adjusted,
    ChangeKeyStatus,
    CreateKey,
    Denied,
    Failure,
    Granted,
    Heartbeat,
    KeyRecord,
    Keys,
    ListKeys,
    Message,
    OrphanUsage,
    OrphanUsageNoted,
    RevokeKey,
    Settle,
    Settled,
    StreamUsage,
)
from tests.fakes.auth_handler_bench import MAX_BACKLOG, AuthHandlerBench
from tests.fakes.auth_parts import ADMIN_SECRET, authorize, stored_key
from tests.fakes.log_lines import log_lines

AUDIT = AuditEntry(0, "", "key_created", "x")
NEW_SECRET = "psk-new-0000000000000000"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def create_key(**fields: Any) -> CreateKey:
    defaults: dict[str, Any] = {
        "request_id": "req-9",
        "key_digest": digest_of(NEW_SECRET),
        "hint": "psk-ne…0000",
        "name": "new",
        "actor_key_id": "key_admin",
    }
    return CreateKey(**{**defaults, **fields})


def revoke(key_id: str, actor: str = "key_admin") -> RevokeKey:
    return RevokeKey(request_id="req-9", key_id=key_id, actor_key_id=actor)


def settle(lease_id: str) -> Settle:
    return Settle(lease_id=lease_id, request_id="req-1", prompt_tokens=1, completion_tokens=2)


def records(message: Message) -> tuple[KeyRecord, ...]:
    assert isinstance(message, Keys), message
    return message.records


def test_a_decision_needs_no_commit(bench: AuthHandlerBench) -> None:
    answer = bench.ask(authorize())
    assert isinstance(answer, Granted)
    adjusted = bench.ask(
        Adjust(request_id="r", lease_id=answer.lease_id, prompt_tokens=1, completion_tokens=1)
    )
    assert isinstance(adjusted, Adjusted)
    assert bench.handler.num_unfinished() == 0


def test_a_refusal_is_logged_under_the_clients_own_id_and_without_the_key(
    bench: AuthHandlerBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.auth")
    caplog.handler.setFormatter(JsonFormatter("auth"))
    assert isinstance(bench.ask(authorize("psk-made-up-0000", trace_id="mine-1")), Denied)
    line = json.loads(caplog.text)
    assert (line["request_id"], line["trace_id"]) == ("req-1", "mine-1")
    assert (line["code"], line["endpoint"]) == ("invalid_api_key", "/v1/chat/completions")
    assert "made-up" not in caplog.text


def test_a_settlement_is_acknowledged_only_after_its_commit(bench: AuthHandlerBench) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    assert bench.ask(settle(granted.lease_id)) is None
    assert bench.handler.num_unfinished() == 1
    assert bench.handler.load().num_running == 1
    assert bench.commit() == [Settled(lease_id=granted.lease_id)]
    assert bench.handler.num_unfinished() == 0
    assert bench.handler.progress_counter() == 1


def test_a_settlement_from_several_gateways_is_acknowledged_to_each_and_booked_once(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    for gateway_id in ("gateway-1", "gateway-2", "gateway-3"):
        bench.handler.on_command(gateway_id, settle(granted.lease_id))
    bench.ask(ListKeys(request_id="req-2"))
    *acknowledged, page = bench.commit()
    assert acknowledged == [Settled(lease_id=granted.lease_id)] * 3
    record = next(record for record in records(page) if record.key_id == "key_user")
    assert (record.total_requests, record.total_completion_tokens) == (1, 2)


def test_a_settlement_repeated_while_the_disk_is_stuck_is_queued_once(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    for _ in range(100):
        bench.ask(settle(granted.lease_id))
    assert bench.committer.num_unanswered == 1
    assert bench.commit() == [Settled(lease_id=granted.lease_id)]


def test_a_drain_does_not_end_between_a_commit_and_its_acknowledgement(
    bench: AuthHandlerBench,
) -> None:
    bench.ask(settle("lease"))
    bench.committer.start()
    assert bench.committer.close(10.0)
    assert bench.committer.num_unanswered == 0
    assert bench.handler.num_unfinished() == 1


def test_a_settlement_of_an_unknown_lease_is_acknowledged(bench: AuthHandlerBench) -> None:
    bench.ask(settle("nobody's"))
    assert bench.commit() == [Settled(lease_id="nobody's")]


def test_a_settlement_out_of_range_fails_at_once(bench: AuthHandlerBench) -> None:
    answer = bench.ask(settle("x" * 5000))
    assert isinstance(answer, Failure)
    assert answer.request_id == "req-1"


def test_a_new_key_opens_once_it_is_durable_and_not_before(bench: AuthHandlerBench) -> None:
    bench.ask(create_key(requests_per_minute=7))
    assert isinstance(bench.ask(authorize(NEW_SECRET)), Denied)
    (answer,) = bench.commit()
    (record,) = records(answer)
    assert (record.key_id, record.name, record.requests_per_minute) == ("key_1", "new", 7)
    granted = bench.ask(authorize(NEW_SECRET))
    assert isinstance(granted, Granted)
    assert granted.limits.limit_requests == 7


def test_a_key_created_twice_has_one_id(bench: AuthHandlerBench) -> None:
    bench.ask(create_key())
    bench.ask(create_key())
    first, second = bench.commit()
    assert records(first) == records(second)
    granted = bench.ask(authorize(NEW_SECRET))
    assert isinstance(granted, Granted)
    assert granted.key_id == "key_1"


def test_a_revoked_key_is_denied_at_once(bench: AuthHandlerBench) -> None:
    assert isinstance(bench.ask(authorize()), Granted)
    assert bench.ask(revoke("key_user")) is None
    denied = bench.ask(authorize())
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.INVALID_API_KEY
    assert "revoked" in denied.message
    (answer,) = bench.commit()
    assert records(answer)[0].revoked_at == int(bench.clock.wall)


def test_revoking_twice_gives_the_same_answer(bench: AuthHandlerBench) -> None:
    bench.ask(revoke("key_user"))
    bench.clock.advance(50)
    bench.ask(revoke("key_user"))
    first, second = bench.commit()
    assert records(first) == records(second)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (revoke("key_none"), ErrorCode.NOT_FOUND),
        (revoke("key_admin"), ErrorCode.INVALID_REQUEST),
        (revoke("key_user", actor="key_user"), ErrorCode.PERMISSION_DENIED),
        (revoke("key_user", actor=""), ErrorCode.PERMISSION_DENIED),
        (create_key(actor_key_id="anonymous"), ErrorCode.PERMISSION_DENIED),
        (create_key(name=""), ErrorCode.INVALID_REQUEST),
        (ListKeys(request_id="req-9", limit=0), ErrorCode.INVALID_REQUEST),
        (ListKeys(request_id="req-9", limit=100_000), ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_may_not_be_fails_at_once_with_its_code(
    bench: AuthHandlerBench, command: Any, code: ErrorCode
) -> None:
    answer = bench.ask(command)
    assert isinstance(answer, Failure)
    assert (answer.request_id, answer.code) == ("req-9", code)
    assert bench.handler.num_unfinished() == 0


def test_the_last_admin_key_goes_once_another_is_there(bench: AuthHandlerBench) -> None:
    second = stored_key("key_admin_2", NEW_SECRET, role="admin")
    bench.administration.added(second, second.key_id)
    assert bench.ask(revoke("key_admin")) is None
    refused = bench.ask(revoke("key_admin_2", actor="key_admin_2"))
    assert isinstance(refused, Failure)
    gone = bench.ask(revoke("key_user"))
    assert isinstance(gone, Failure)
    assert gone.code is ErrorCode.PERMISSION_DENIED


def test_the_last_lasting_admin_key_stays_while_only_a_temporary_one_is_there(
    bench: AuthHandlerBench,
) -> None:
    expires_at = int(bench.clock.wall) + 60
    temporary = stored_key("key_temporary", NEW_SECRET, role="admin", expires_at=expires_at)
    bench.administration.added(temporary, temporary.key_id)
    for actor in ("key_admin", "key_temporary"):
        refused = bench.ask(revoke("key_admin", actor=actor))
        assert isinstance(refused, Failure)
        assert (refused.code, refused.param) == (ErrorCode.INVALID_REQUEST, "key_id")
        assert "no 'expires_at'" in refused.message
    bench.clock.advance(60)
    assert isinstance(bench.ask(authorize(ADMIN_SECRET, required_role="admin")), Granted)


def test_a_temporary_admin_key_can_always_be_revoked(bench: AuthHandlerBench) -> None:
    expires_at = int(bench.clock.wall) + 60
    temporary = stored_key("key_temporary", NEW_SECRET, role="admin", expires_at=expires_at)
    bench.administration.added(temporary, temporary.key_id)
    assert bench.ask(revoke("key_temporary", actor="key_temporary")) is None
    assert isinstance(bench.ask(authorize(NEW_SECRET)), Denied)


def test_the_environments_key_is_changed_in_the_environment(bench: AuthHandlerBench) -> None:
    key = replace(stored_key("key_environment", NEW_SECRET), role="admin")
    bench.store.apply([PutKey(key, AUDIT)])
    bench.administration.added(key, key.key_id)
    for action in ("suspend", "reactivate", "delete"):
        command = ChangeKeyStatus(
            request_id="r",
            actor=Actor(key_id="key_admin"),
            key_id="key_environment",
            action=action,
        )
        refused = bench.ask(command)
        assert isinstance(refused, Failure)
        assert refused.code is ErrorCode.PERMISSION_DENIED
        assert "PENSTOCK_ADMIN_KEY" in refused.message
    assert isinstance(bench.ask(authorize(NEW_SECRET)), Granted)


def test_the_environments_key_is_revoked_at_once(bench: AuthHandlerBench) -> None:
    key = replace(stored_key("key_environment", NEW_SECRET), role="admin")
    bench.store.apply([PutKey(key, AUDIT)])
    bench.administration.added(key, key.key_id)
    assert bench.ask(revoke("key_environment")) is None
    denied = bench.ask(authorize(NEW_SECRET))
    assert isinstance(denied, Denied)
    assert "was revoked" in denied.message


def test_an_unknown_page_start_is_not_found(bench: AuthHandlerBench) -> None:
    bench.ask(ListKeys(request_id="req-2", after_key_id="key_none"))
    (answer,) = bench.commit()
    assert isinstance(answer, Failure)
    assert answer.code is ErrorCode.NOT_FOUND


def test_pages_say_when_there_is_more(bench: AuthHandlerBench) -> None:
    bench.ask(ListKeys(request_id="req-2", limit=1))
    (answer,) = bench.commit()
    assert isinstance(answer, Keys)
    assert answer.has_more
    assert [record.key_id for record in answer.records] == ["key_user"]


def test_a_draining_worker_grants_nothing_but_settles(bench: AuthHandlerBench) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.handler.on_drain(5.0)
    denied = bench.ask(authorize())
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.WORKER_UNAVAILABLE
    assert denied.retry_after_s is not None
    assert denied.key_id == "key_user"
    bench.ask(settle(granted.lease_id))
    assert bench.commit() == [Settled(lease_id=granted.lease_id)]


def test_with_a_backlog_that_grows_nothing_is_granted(bench: AuthHandlerBench) -> None:
    answers = [bench.ask(authorize()) for _ in range(60)]
    assert sum(isinstance(answer, Granted) for answer in answers) == 50
    assert isinstance(answers[-1], Denied)
    assert answers[-1].code is ErrorCode.WORKER_UNAVAILABLE


def test_while_the_disk_is_stuck_admin_commands_fail_and_do_not_pile_up(
    bench: AuthHandlerBench,
) -> None:
    bench.committer._failing = True
    for command in (create_key(), ListKeys(request_id="req-9")) * 100:
        answer = bench.ask(command)
        assert isinstance(answer, Failure)
        assert (answer.request_id, answer.code) == ("req-9", ErrorCode.WORKER_UNAVAILABLE)
    assert bench.committer.num_unanswered == 0
    answers = [bench.ask(revoke("key_user")) for _ in range(60)]
    assert [isinstance(answer, Failure) for answer in answers] == [False] * 50 + [True] * 10
    bench.committer._failing = False
    denied = bench.ask(authorize())
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.WORKER_UNAVAILABLE  # the backlog is long
    key = bench.handler._authority.keys.get("key_user")
    assert key is not None
    assert key.revoked_at is not None


def test_settlements_of_ever_new_gateways_do_not_pile_up_while_the_disk_is_stuck(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    for number in range(200):
        bench.handler.on_command(f"gateway-{number}", settle(granted.lease_id))
    assert bench.committer.num_unanswered == MAX_BACKLOG
    assert bench.commit() == [Settled(lease_id=granted.lease_id)] * MAX_BACKLOG


def test_reports_of_ever_new_engines_do_not_pile_up_while_the_disk_is_stuck(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    usage = StreamUsage(lease_id=granted.lease_id, stream="r/0", completion_tokens=2)
    for number in range(200):
        bench.ask(OrphanUsage(report_id=f"{number}:1", engine_id=str(number), streams=(usage,)))
    # Each report that is taken brings the lease along once more.
    assert bench.committer.num_unanswered <= MAX_BACKLOG
    assert len(bench.committer._backlog) <= MAX_BACKLOG + 1


def test_an_engines_report_repeated_while_the_disk_is_stuck_is_queued_once(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    usage = StreamUsage(lease_id=granted.lease_id, stream="r/0", completion_tokens=2)
    report = OrphanUsage(report_id="e:1", engine_id="e", streams=(usage,))
    for _ in range(100):
        assert bench.ask(report) is None
    assert bench.committer.num_unanswered == 1
    assert bench.commit() == [OrphanUsageNoted(report_id="e:1", engine_id="e")]


def test_an_expired_lease_is_charged_and_a_late_settlement_corrects_it(
    bench: AuthHandlerBench,
) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.clock.advance(600)
    bench.handler.expire()
    assert bench.handler.num_leases == 0
    bench.ask(settle(granted.lease_id))
    bench.ask(ListKeys(request_id="req-2"))
    _, page = bench.commit()
    record = next(record for record in records(page) if record.key_id == "key_user")
    assert (record.total_requests, record.total_prompt_tokens) == (1, 1)


def test_a_lost_gateway_loses_no_lease(bench: AuthHandlerBench) -> None:
    bench.ask(authorize())
    bench.handler.on_gateway_lost("gateway-1")
    assert bench.handler.num_leases == 1


def test_an_engines_report_is_noted_once_it_is_durable(bench: AuthHandlerBench) -> None:
    granted = [bench.ask(authorize()) for _ in range(2)]
    streams = tuple(
        StreamUsage(lease_id=one.lease_id, stream="r/0", prompt_tokens=1, completion_tokens=2)
        for one in granted
        if isinstance(one, Granted)
    )
    noted = OrphanUsageNoted(report_id="e:1", engine_id="e")
    report = OrphanUsage(report_id="e:1", engine_id="e", streams=streams)
    assert bench.ask(report) is None
    assert bench.handler.num_unfinished() == 1
    assert bench.commit() == [noted]
    assert [
        row.reported_completion_tokens for row in bench.store.load(recent_since_ms=0).leases
    ] == [2, 2]
    # What has nothing to be noted is acknowledged at once, so that the engine can forget it.
    assert bench.ask(OrphanUsage(report_id="e:1", engine_id="e", streams=())) == noted


def test_connection_messages_are_left_to_the_worker_loop(bench: AuthHandlerBench) -> None:
    assert bench.ask(Heartbeat(instance_id="g", phase="ready")) is None
    assert bench.handler.credits("gateway-1") is None


def test_an_admin_is_not_asked_for_more_than_a_key(bench: AuthHandlerBench) -> None:
    answer = bench.ask(
        authorize(ADMIN_SECRET, required_role="admin", prompt_tokens=0, completion_tokens=0)
    )
    assert isinstance(answer, Granted)
    assert answer.role == "admin"


def test_decisions_leases_and_commits_are_counted(bench: AuthHandlerBench) -> None:
    settled = bench.ask(authorize())
    assert isinstance(settled, Granted)
    bench.ask(settle(settled.lease_id))
    bench.ask(authorize())
    bench.ask(authorize())
    bench.handler.on_drain(5.0)
    bench.ask(authorize())

    def values() -> dict[str, float]:
        return {
            " ".join([sample.name.removeprefix("penstock_auth_"), *dict(sample.labels).values()]): (
                sample.value
            )
            for sample in bench.handler.metrics.registry.message().samples
        }

    assert (values()["decisions granted"], values()["open_leases"]) == (3, 2)
    assert values()["decisions worker_unavailable"] == 1
    assert values()["waiting_commits"] == 1
    bench.clock.advance(600)
    bench.handler.expire()
    bench.commit()
    assert (values()["expired_leases"], values()["open_leases"]) == (2, 0)
    assert (values()["waiting_commits"], values()["commit_groups"] >= 1) == (0, True)


def test_what_is_granted_is_logged_as_detail_only(bench: AuthHandlerBench) -> None:
    with log_lines("penstock.auth") as lines:
        bench.ask(authorize(request_id="r", trace_id="mine-1"))
    assert lines.about("mine-1") == [("debug", "granted")]
    with log_lines("penstock.auth", "INFO") as lines:
        bench.ask(authorize(request_id="r", trace_id="mine-2"))
    assert lines.lines == []
