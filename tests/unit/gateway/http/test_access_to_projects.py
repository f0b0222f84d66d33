"""Whether the owner of a project's key has access to it, as OpenAI's client is told."""

from typing import Any

import pytest

from gateway.http.organization import shapes
from protocol.wire.messages import KeyDetails, KeySettings, Resource, TeamSettings, UserSettings


@pytest.mark.parametrize(
    ("key", "user", "team", "access"),
    [
        ({}, {}, {}, "active"),
        ({"status": "suspended"}, {}, {}, "inactive"),
        ({}, {"suspended_at": 5}, {}, "inactive"),
        ({}, {"team_ids": ("team_2",)}, {}, "inactive"),
        ({}, {}, {"suspended_at": 5}, "inactive"),
        ({}, None, {}, "inactive"),
        ({"settings": KeySettings(name="k", team_id="team_1")}, None, {}, "active"),
    ],
)
def test_access_takes_a_key_a_member_and_a_project_that_are_active(
    key: dict[str, Any], user: dict[str, Any] | None, team: dict[str, Any], access: str
) -> None:
    of_user = KeySettings(name="k", user_id="user_1", team_id="team_1")
    told = shapes.project_key(
        KeyDetails(
            **{
                "key_id": "key_1",
                "hint": "h",
                "status": "active",
                "settings": of_user,
                "tenant_id": "",
                "created_at": 1,
                **key,
            }
        ),
        None if user is None else _resource("user_1", UserSettings(name="u"), **user),
        _resource("team_1", TeamSettings(name="t"), **team),
    )
    assert told["owner_project_access"] == access


def _resource(resource_id: str, settings: UserSettings | TeamSettings, **more: Any) -> Resource:
    fields = {"team_ids": ("team_1",)} if isinstance(settings, UserSettings) else {}
    return Resource(resource_id=resource_id, settings=settings, created_at=1, **{**fields, **more})
