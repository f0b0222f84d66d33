"""What a webhook is sent again, and when, after it was away or leads elsewhere."""

from pathlib import Path

from msgspec import structs

from auth_worker.errors import OutboundError
from auth_worker.serving.webhook_desk import BACKOFF_S, MAX_AGE_S
from protocol.wire.messages import ChangeResource, ResourcesFound, UpdateResource
from tests.unit.auth_worker.test_webhooks import ADMIN, HOOK, Harness


def test_what_waited_for_days_for_its_webhook_is_not_given_up_at_the_first_failure(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    made = harness.make()
    harness.happen("key_revoked")
    for action in ("suspend", "reactivate"):
        command = ChangeResource(
            request_id="c",
            actor=ADMIN,
            kind="webhook",
            resource_id=made.resource_id,
            action=action,
        )
        assert isinstance(harness.ask(command), ResourcesFound)
        harness.clock.advance(MAX_AGE_S + 1)
    harness.answer = lambda event: OutboundError("away")
    assert harness.tick() == ["key_revoked"]
    harness.clock.advance(BACKOFF_S[0])
    harness.answer = lambda event: 200
    assert harness.tick() == ["key_revoked"]


def test_another_target_is_tried_at_once_and_as_often(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    hook = harness.hooks[harness.make().resource_id]
    harness.happen("key_revoked")
    harness.answer = lambda event: 404
    assert harness.tick() == ["key_revoked"]
    assert (hook.num_failed, harness.tick()) == (1, [])
    other = UpdateResource(
        request_id="u",
        actor=ADMIN,
        kind="webhook",
        resource_id=hook.webhook_id,
        settings=structs.replace(HOOK, url="https://other.example/"),
        fields=("url",),
    )
    assert isinstance(harness.ask(other), ResourcesFound)
    assert harness.tick() == ["key_revoked"]
    assert (harness.posted[-1][0], hook.num_failed) == ("https://other.example/", 1)
