"""What the routes of administrators answer, and those about use and budgets."""

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
    is_exactly,
    list_of,
    one_of,
    or_null,
    record,
    ref,
    struct,
)
from protocol.wire.messages import (
    AuditRecord,
    KeyDetails,
    KeysCounted,
    KeySettings,
    LimitSettings,
    Load,
    Member,
    PriceSettings,
    TeamSettings,
    UserSettings,
    WebhookSettings,
    WebhookState,
)

_OR_TEXT: Final = or_null(TEXT)
_OR_WHOLE: Final = or_null(WHOLE)
_OR_NUMBER: Final = or_null(NUMBER)
_STATUS: Final[dict[str, Any]] = {
    "status": one_of("active", "suspended"),
    "suspended_at": _OR_WHOLE,
}
_KEY: Final = struct(KeySettings)
_KEY_DETAILS: Final = struct(KeyDetails, "key_id", "settings", "tenant_id")
_PRICE: Final[dict[str, Any]] = {"version": WHOLE, "is_ended": FLAG}
_WEBHOOK: Final[dict[str, Any]] = {
    **struct(WebhookSettings),
    "secret": absent_or(TEXT),
    **struct(WebhookState),
}


def _resource(kind: str, settings: dict[str, Any], **more: Any) -> Schema:
    return record(
        {"object": is_exactly(kind), "id": TEXT}
        | settings
        | {"created_at": WHOLE, "created_by": TEXT}
        | more
    )


_LIMIT: Final[dict[str, Any]] = {
    "id": TEXT,
    **{
        name: schema
        for name, schema in struct(LimitSettings).items()
        if name
        in ("name", "holder", "holder_id", "measure", "window", "models", "endpoints", "is_hard")
    },
    "amount": WHOLE,
    "used": WHOLE,
    "reserved": WHOLE,
    "remaining": WHOLE,
    "begins_at": _OR_WHOLE,
    "ends_at": _OR_WHOLE,
}
_PERMISSIONS: Final = (
    *("allowed_models", "allowed_endpoints", "allowed_ip_addresses", "blocked_ip_addresses"),
    *("enable_streaming", "enable_function_calling", "max_tokens_per_request"),
    *("max_parallel_requests", "may_name_end_users", "priority"),
)
_OF_KEY: Final = ("owner", "user_id", "team_id", "role", "tags", "metadata", "expires_at")
_OF_NO_KEY: Final[dict[str, Any]] = {
    "object": is_exactly("usage"),
    "scopes": absent_or(list_of(TEXT)),
    "limits": absent_or(list_of(ref("LimitStanding"))),
    "data": list_of(ref("UsageRow")),
    "has_more": FLAG,
    "next": _OR_WHOLE,
}
_WARNING: Final = record(
    type=one_of("budget_exceeded", "budget_warning"),
    budget_id=TEXT,
    budget_name=TEXT,
    message=TEXT,
    current_usage_cents=WHOLE,
    limit_cents=WHOLE,
    usage_percentage=NUMBER,
)

SCHEMAS: Final[dict[str, Schema]] = {
    "Key": record(
        {"object": is_exactly("key"), "id": TEXT, **_KEY, **_KEY_DETAILS, "key": absent_or(TEXT)}
    ),
    "KeyStatistics": record(object=is_exactly("key.stats"), **struct(KeysCounted, "request_id")),
    "User": _resource("user", struct(UserSettings), **_STATUS, team_ids=list_of(TEXT)),
    "Team": _resource(
        "team", struct(TeamSettings), **_STATUS, members=absent_or(list_of(record(struct(Member))))
    ),
    "Limit": _resource("limit", struct(LimitSettings)),
    "Budget": _resource("budget", struct(LimitSettings)),
    "Webhook": _resource("webhook", _WEBHOOK, **_STATUS),
    "Price": _resource(
        "price",
        struct(PriceSettings),
        **_PRICE,
        earlier=absent_or(list_of(ref("Price"))),
    ),
    "AuditEntry": record(
        object=is_exactly("audit_log.entry"),
        **struct(AuditRecord, "detail", "previous_hash", "hash"),
        detail=OBJECT,
        previous_hash=TEXT,
        hash=TEXT,
    ),
    "LimitStanding": record(_LIMIT),
    "UsageRow": record(
        **dict.fromkeys(("start_time", "end_time"), absent_or(WHOLE)),
        **dict.fromkeys(
            ("key_id", "user_id", "team_id", "end_user", "model", "endpoint"), absent_or(TEXT)
        ),
        **dict.fromkeys(
            (
                *("num_requests", "prompt_tokens", "completion_tokens", "cached_tokens"),
                *("reasoning_tokens", "cost_micros", "total_tokens"),
            ),
            WHOLE,
        ),
    ),
    "UsageReport": record(
        **_OF_NO_KEY,
        api_key_id=absent_or(TEXT),
        api_key_name=absent_or(TEXT),
        status=absent_or(_KEY_DETAILS["status"]),
        closed_by=absent_or(_KEY_DETAILS["closed_by"]),
        **{name: absent_or(_KEY[name]) for name in _OF_KEY},
        tenant=absent_or(TEXT),
        created_at=absent_or(WHOLE),
        last_used_at=absent_or(_OR_WHOLE),
        **{
            f"total_{name}": absent_or(WHOLE)
            for name in (
                *("requests", "tokens", "prompt_tokens", "completion_tokens"),
                *("cost_cents", "cost_micros"),
            )
        },
        rate_limits=absent_or(
            record({f"per_{name}": _OR_WHOLE for name in ("minute", "hour", "day")})
        ),
        permissions=absent_or(record({name: _KEY[name] for name in _PERMISSIONS})),
        allowed_models=absent_or(_KEY["allowed_models"]),
        team_allowed_models=absent_or(or_null(list_of(TEXT))),
    ),
    "BudgetStanding": record(
        **_LIMIT,
        budget_id=TEXT,
        budget_name=TEXT,
        limit_cents=WHOLE,
        current_usage_cents=WHOLE,
        remaining_cents=WHOLE,
        usage_percentage=NUMBER,
        is_exceeded=FLAG,
        is_warning=FLAG,
        thresholds=list_of(WHOLE),
        period_type=TEXT,
        period_start=_OR_WHOLE,
        period_end=_OR_WHOLE,
        days_until_reset=_OR_NUMBER,
        daily_burn_micros=WHOLE,
        projected_micros=_OR_WHOLE,
        projected_percentage=_OR_NUMBER,
        days_left=_OR_NUMBER,
    ),
    "BudgetStatus": record(
        object=is_exactly("budget_status"),
        data=record(
            budgets=list_of(ref("BudgetStanding")),
            total_usage_micros=WHOLE,
            total_usage=NUMBER,
            warnings=list_of(_WARNING),
            projections=record(
                daily_burn_rate=NUMBER, projected_monthly=NUMBER, days_remaining=_OR_NUMBER
            ),
        ),
    ),
    "Worker": record(
        object=is_exactly("worker"),
        name=TEXT,
        role=TEXT,
        model=_OR_TEXT,
        status=one_of("healthy", "degraded", "unavailable"),
        phase=TEXT,
        fraction=_OR_NUMBER,
        detail=TEXT,
        takes_work=FLAG,
        host=_OR_TEXT,
        address=_OR_TEXT,
        build=TEXT,
        protocol_version=TEXT,
        fingerprint=_OR_TEXT,
        epoch=_OR_WHOLE,
        load=record(struct(Load)),
        num_answered=WHOLE,
        num_failed=WHOLE,
        success_rate=_OR_NUMBER,
        latency_ms=record(p50=_OR_NUMBER, p99=_OR_NUMBER),
        last_error=or_null(record(code=TEXT, message=TEXT, at=WHOLE)),
        last_heard_at=WHOLE,
    ),
    "Provider": record(
        provider=TEXT,
        status=one_of("healthy", "degraded", "unavailable"),
        latency_ms=_OR_NUMBER,
        success_rate=_OR_NUMBER,
        last_check=WHOLE,
        error_message=_OR_TEXT,
        models_available=list_of(TEXT),
    ),
    "CacheInvalidation": record(
        object=is_exactly("cache.invalidation"),
        engines=list_of(record(name=TEXT, model=TEXT, num_blocks=_OR_WHOLE, error=_OR_TEXT)),
        num_blocks=WHOLE,
        models_forgotten=list_of(TEXT),
    ),
    "Profile": record(
        object=is_exactly("profile"), model=TEXT, engine=TEXT, directory=TEXT, size_bytes=WHOLE
    ),
}
_KINDS: Final = ("user", "team", "limit", "budget", "price", "webhook")
_WITH_STATUS: Final = ("user", "team", "webhook")


def _list(name: str) -> Answers:
    return Answers(record(object=is_exactly("list"), data=list_of(ref(name)), has_more=FLAG))


def _deleted(kind: str) -> Answers:
    return Answers(record(object=is_exactly(f"{kind}.deleted"), id=TEXT, deleted={"const": True}))


def _routes_of(kind: str) -> dict[str, Answers]:
    name, path = kind.capitalize(), f"/v1/admin/{kind}s"
    one, answer = f"{path}/{{{kind}_id}}", Answers(ref(kind.capitalize()))
    acts = ("suspend", "reactivate") if kind in (*_WITH_STATUS, "key") else ()
    return {
        f"POST {path}": answer,
        f"GET {path}": _list(name),
        f"GET {one}": answer,
        f"PATCH {one}": answer,
        f"DELETE {one}": _deleted(kind),
        **{f"POST {one}/{act}": answer for act in acts},
    }


_A_KEY: Final = "/v1/admin/keys/{key_id}"
_MEMBER: Final = "/v1/admin/teams/{team_id}/members/{user_id}"
ROUTES: Final[dict[str, Answers]] = {
    **{route: answers for kind in ("key", *_KINDS) for route, answers in _routes_of(kind).items()},
    "GET /v1/admin/keys/stats": Answers(ref("KeyStatistics")),
    f"POST {_A_KEY}/rotate": Answers(ref("Key")),
    f"DELETE {_A_KEY}/revoke": Answers(ref("Key")),
    f"PUT {_MEMBER}": Answers(ref("Team")),
    f"DELETE {_MEMBER}": Answers(ref("Team")),
    "POST /v1/admin/budgets/{budget_id}/raise": Answers(ref("Budget")),
    "GET /v1/admin/audit-logs": Answers(
        record(
            object=is_exactly("list"),
            data=list_of(ref("AuditEntry")),
            first_id=_OR_WHOLE,
            last_id=_OR_WHOLE,
            has_more=FLAG,
        )
    ),
    "GET /v1/usage": Answers(ref("UsageReport")),
    "GET /v1/budget/status": Answers(ref("BudgetStatus")),
    "GET /v1/admin/workers": Answers(
        record(object=is_exactly("list"), data=list_of(ref("Worker")))
    ),
    "GET /v1/providers/status": Answers(
        record(object=is_exactly("provider_status"), data=list_of(ref("Provider")))
    ),
    "POST /v1/admin/workers/{name}/drain": Answers(
        record(object=is_exactly("worker.drain"), name=TEXT, timeout_s=or_null(NUMBER))
    ),
    "POST /v1/models/invalidate-cache": Answers(ref("CacheInvalidation")),
    "POST /v1/admin/profile": Answers(ref("Profile")),
}
