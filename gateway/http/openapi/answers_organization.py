"""What OpenAI's organization API answers."""

from typing import Any, Final

from gateway.http.openapi.shapes import (
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    absent_or,
    either,
    is_exactly,
    list_of,
    one_of,
    or_null,
    page_of,
    record,
    ref,
)

_OR_TEXT: Final = or_null(TEXT)
_OR_WHOLE: Final = or_null(WHOLE)
_ORGANIZATION_ROLE: Final = one_of("owner", "reader")
_PROJECT_ROLE: Final = one_of("owner", "member")
_KEY: Final[dict[str, Any]] = {
    "id": TEXT,
    "name": TEXT,
    "redacted_value": TEXT,
    "created_at": WHOLE,
    "expires_at": _OR_WHOLE,
    "last_used_at": _OR_WHOLE,
}
_NEW_KEY: Final = record(
    object=is_exactly("organization.project.service_account.api_key"),
    id=TEXT,
    name=TEXT,
    created_at=WHOLE,
    expires_at=_OR_WHOLE,
    value=TEXT,
)
_ACCOUNT: Final[dict[str, Any]] = {
    "object": is_exactly("organization.project.service_account"),
    "id": TEXT,
    "name": TEXT,
    "created_at": WHOLE,
    "role": _PROJECT_ROLE,
}
_OWNER: Final[dict[str, Any]] = {"id": TEXT, "name": TEXT, "created_at": WHOLE, "role": TEXT}
_MONEY: Final[dict[str, Any]] = {
    "currency": is_exactly("USD"),
    "interval": is_exactly("month"),
    "threshold_amount": WHOLE,
}
_OF_WHOM: Final = ("project_id", "user_id", "api_key_id", "model", "line_item")


def _result(kind: str, **counts: Any) -> Schema:
    groups = dict.fromkeys(_OF_WHOM, absent_or(_OR_TEXT))
    return record(object=is_exactly(f"organization.{kind}.result"), **counts, **groups)


def _used(kind: str) -> Schema:
    return _result(
        f"usage.{kind}",
        input_tokens=WHOLE,
        output_tokens=WHOLE,
        input_cached_tokens=WHOLE,
        num_model_requests=WHOLE,
    )


def _buckets(result: Schema) -> Answers:
    bucket = record(
        object=is_exactly("bucket"), start_time=WHOLE, end_time=WHOLE, results=list_of(result)
    )
    return Answers(
        record(object=is_exactly("page"), data=list_of(bucket), has_more=FLAG, next_page=_OR_TEXT)
    )


def _deleted(kind: str) -> Answers:
    return Answers(record(object=is_exactly(f"{kind}.deleted"), id=TEXT, deleted={"const": True}))


def _gone(kind: str) -> Answers:
    return Answers(record(object=is_exactly(f"{kind}.deleted"), deleted={"const": True}))


SCHEMAS: Final[dict[str, Schema]] = {
    "Project": record(
        object=is_exactly("organization.project"),
        id=TEXT,
        name=TEXT,
        created_at=WHOLE,
        archived_at=_OR_WHOLE,
        status=one_of("active", "archived"),
    ),
    "AdminApiKey": record(
        object=is_exactly("organization.admin_api_key"),
        **_KEY,
        owner=record(**_OWNER, type=is_exactly("user"), object=is_exactly("organization.user")),
        value=absent_or(TEXT),
    ),
    "ProjectApiKey": record(
        object=is_exactly("organization.project.api_key"),
        **_KEY,
        owner=either(
            record(type=is_exactly("service_account"), service_account=record(_OWNER)),
            record(type=is_exactly("user"), user=record(**_OWNER, email=TEXT)),
        ),
        owner_project_access=one_of("active", "inactive"),
    ),
    "ServiceAccountApiKey": _NEW_KEY,
    "ServiceAccount": record(_ACCOUNT),
    "NewServiceAccount": record(**_ACCOUNT, api_key=or_null(ref("ServiceAccountApiKey"))),
    "ProjectUser": record(
        object=is_exactly("organization.project.user"),
        id=TEXT,
        name=TEXT,
        email=TEXT,
        role=_PROJECT_ROLE,
        added_at=WHOLE,
    ),
    "OrganizationUser": record(
        object=is_exactly("organization.user"),
        id=TEXT,
        name=TEXT,
        email=TEXT,
        role=_ORGANIZATION_ROLE,
        added_at=WHOLE,
        created=WHOLE,
        is_service_account=FLAG,
        projects=record(object=is_exactly("list"), data=list_of(record(id=TEXT))),
        user=record(
            object=is_exactly("user"),
            id=TEXT,
            name=TEXT,
            email=TEXT,
            enabled=FLAG,
            banned=FLAG,
            banned_at=_OR_WHOLE,
        ),
    ),
    "Invite": record(
        object=is_exactly("organization.invite"),
        id=TEXT,
        email=TEXT,
        role=_ORGANIZATION_ROLE,
        status=is_exactly("accepted"),
        created_at=WHOLE,
        expires_at=_OR_WHOLE,
        accepted_at=WHOLE,
        projects=list_of(record(id=TEXT, role=_PROJECT_ROLE)),
    ),
    "ProjectRateLimit": record(
        object=is_exactly("project.rate_limit"),
        id=TEXT,
        model=TEXT,
        max_requests_per_1_minute=WHOLE,
        max_tokens_per_1_minute=WHOLE,
        max_requests_per_1_day=_OR_WHOLE,
    ),
    "ModelPermissions": record(
        object=is_exactly("project.model_permissions"),
        mode=one_of("allow_list", "deny_list"),
        model_ids=list_of(TEXT),
    ),
    "SpendLimit": record(
        object=one_of("organization.spend_limit", "project.spend_limit"),
        **_MONEY,
        enforcement=record(status=one_of("enforcing", "inactive")),
    ),
    "SpendAlert": record(
        object=one_of("organization.spend_alert", "project.spend_alert"),
        id=TEXT,
        **_MONEY,
        notification_channel=record(type=is_exactly("email"), recipients=list_of(TEXT)),
    ),
    "AuditEvent": {
        "type": "object",
        "description": "With a field of the name of its `type`, which says what it was done to.",
        "required": ["object", "id", "type", "effective_at", "actor", "penstock"],
        "properties": {
            "object": is_exactly("organization.audit_log"),
            "id": TEXT,
            "type": TEXT,
            "effective_at": WHOLE,
            "actor": record(
                type=is_exactly("api_key"),
                api_key=record(id=TEXT, type=is_exactly("service_account")),
                session=record(ip_address=TEXT),
            ),
            "penstock": record(action=TEXT, outcome=TEXT, request_id=TEXT),
        },
        "additionalProperties": OBJECT,
    },
}
_BASE: Final = "/v1/organization"
_PROJECT: Final = f"{_BASE}/projects/{{project_id}}"


def _one(name: str) -> Answers:
    return Answers(ref(name))


def _page(name: str) -> Answers:
    return Answers(page_of(ref(name)))


def _money(base: str, kind: str) -> dict[str, Answers]:
    """The routes of money, of the organization or of a project."""
    limit, alerts = f"{base}/spend_limit", f"{base}/spend_alerts"
    alert = f"{alerts}/{{alert_id}}"
    return {
        f"GET {limit}": _one("SpendLimit"),
        f"POST {limit}": _one("SpendLimit"),
        f"DELETE {limit}": _gone(f"{kind}.spend_limit"),
        f"GET {alerts}": _page("SpendAlert"),
        f"POST {alerts}": _one("SpendAlert"),
        f"GET {alert}": _one("SpendAlert"),
        f"POST {alert}": _one("SpendAlert"),
        f"DELETE {alert}": _deleted(f"{kind}.spend_alert"),
    }


ROUTES: Final[dict[str, Answers | None]] = {
    f"POST {_BASE}/projects": _one("Project"),
    f"GET {_BASE}/projects": _page("Project"),
    f"GET {_PROJECT}": _one("Project"),
    f"POST {_PROJECT}": _one("Project"),
    f"POST {_PROJECT}/archive": _one("Project"),
    f"POST {_BASE}/admin_api_keys": _one("AdminApiKey"),
    f"GET {_BASE}/admin_api_keys": _page("AdminApiKey"),
    f"GET {_BASE}/admin_api_keys/{{key_id}}": _one("AdminApiKey"),
    f"DELETE {_BASE}/admin_api_keys/{{key_id}}": _deleted("organization.admin_api_key"),
    f"GET {_PROJECT}/api_keys": _page("ProjectApiKey"),
    f"GET {_PROJECT}/api_keys/{{key_id}}": _one("ProjectApiKey"),
    f"POST {_PROJECT}/api_keys/{{key_id}}": _one("ProjectApiKey"),
    f"DELETE {_PROJECT}/api_keys/{{key_id}}": _deleted("organization.project.api_key"),
    f"POST {_PROJECT}/service_accounts": _one("NewServiceAccount"),
    f"GET {_PROJECT}/service_accounts": _page("ServiceAccount"),
    f"GET {_PROJECT}/service_accounts/{{account_id}}": _one("ServiceAccount"),
    f"POST {_PROJECT}/service_accounts/{{account_id}}": _one("ServiceAccount"),
    f"DELETE {_PROJECT}/service_accounts/{{account_id}}": _deleted(
        "organization.project.service_account"
    ),
    f"POST {_PROJECT}/service_accounts/{{account_id}}/api_keys": _one("ServiceAccountApiKey"),
    f"GET {_PROJECT}/users": _page("ProjectUser"),
    f"POST {_PROJECT}/users": _one("ProjectUser"),
    f"GET {_PROJECT}/users/{{user_id}}": _one("ProjectUser"),
    f"POST {_PROJECT}/users/{{user_id}}": _one("ProjectUser"),
    f"DELETE {_PROJECT}/users/{{user_id}}": _deleted("organization.project.user"),
    f"GET {_BASE}/users": _page("OrganizationUser"),
    f"GET {_BASE}/users/{{user_id}}": _one("OrganizationUser"),
    f"POST {_BASE}/users/{{user_id}}": _one("OrganizationUser"),
    f"DELETE {_BASE}/users/{{user_id}}": _deleted("organization.user"),
    f"POST {_BASE}/invites": _one("Invite"),
    f"GET {_BASE}/invites": _page("Invite"),
    f"GET {_BASE}/invites/{{invite_id}}": _one("Invite"),
    # It was accepted when it was made, so it can't be taken back.
    f"DELETE {_BASE}/invites/{{invite_id}}": None,
    f"GET {_PROJECT}/rate_limits": _page("ProjectRateLimit"),
    f"POST {_PROJECT}/rate_limits/{{rate_limit_id}}": _one("ProjectRateLimit"),
    f"GET {_PROJECT}/model_permissions": _one("ModelPermissions"),
    f"POST {_PROJECT}/model_permissions": _one("ModelPermissions"),
    f"DELETE {_PROJECT}/model_permissions": _gone("project.model_permissions"),
    **_money(_BASE, "organization"),
    **_money(_PROJECT, "project"),
    f"GET {_BASE}/audit_logs": _page("AuditEvent"),
    f"GET {_BASE}/usage/completions": _buckets(_used("completions")),
    f"GET {_BASE}/usage/decisions": _buckets(_used("decisions")),
    f"GET {_BASE}/usage/embeddings": _buckets(
        _result("usage.embeddings", input_tokens=WHOLE, num_model_requests=WHOLE)
    ),
    f"GET {_BASE}/costs": _buckets(
        _result("costs", amount=record(value=NUMBER, currency=is_exactly("usd")))
    ),
}
