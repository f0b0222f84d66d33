"""What Anthropic's organization API answers."""

from typing import Any, Final

from gateway.http.openapi.shapes import (
    FLAG,
    NULL,
    TEXT,
    WHOLE,
    Answers,
    Schema,
    either,
    is_exactly,
    list_of,
    one_of,
    or_null,
    record,
    ref,
)

_OR_TEXT: Final = or_null(TEXT)
_ROLE: Final = one_of("workspace_admin", "workspace_developer")
_GROUP: Final = record(id=TEXT, type=is_exactly("model_group"), display_name=TEXT)
_SCOPE: Final = record(type=is_exactly("user"), user_id=TEXT)
_NOT_TOLD: Final[dict[str, Any]] = {
    "service_tier": NULL,
    "context_window": NULL,
    "inference_geo": NULL,
}

SCHEMAS: Final[dict[str, Schema]] = {
    "Organization": record(type=is_exactly("organization"), id=TEXT, name=TEXT),
    "Workspace": record(
        type=is_exactly("workspace"),
        id=TEXT,
        name=TEXT,
        created_at=TEXT,
        archived_at=_OR_TEXT,
        tags={"type": "object", "maxProperties": 0},
        data_residency=record(
            allowed_inference_geos=TEXT, default_inference_geo=TEXT, workspace_geo=TEXT
        ),
        display_color=TEXT,
        external_key_id=NULL,
        compartment_id=TEXT,
    ),
    "WorkspaceMember": record(
        type=is_exactly("workspace_member"),
        user_id=TEXT,
        workspace_id=TEXT,
        workspace_role=_ROLE,
    ),
    "WorkspaceApiKey": record(
        type=is_exactly("api_key"),
        id=TEXT,
        name=TEXT,
        partial_key_hint=TEXT,
        status=one_of("active", "inactive", "expired", "archived"),
        created_at=TEXT,
        created_by=or_null(record(type=is_exactly("user"), id=TEXT)),
        expires_at=_OR_TEXT,
        principal=or_null(
            either(
                record(type=is_exactly("user_actor"), user_id=TEXT),
                record(type=is_exactly("service_account_actor"), service_account_id=TEXT),
            )
        ),
        scope=either(
            record(type=is_exactly("workspace"), workspace_id=TEXT),
            record(type=is_exactly("organization")),
        ),
    ),
    "WorkspaceUser": record(
        type=is_exactly("user"),
        id=TEXT,
        name=TEXT,
        email=TEXT,
        role=one_of("admin", "user"),
        added_at=TEXT,
    ),
    "WorkspaceInvite": record(
        type=is_exactly("invite"),
        id=TEXT,
        email=TEXT,
        role=one_of("admin", "user"),
        status=is_exactly("accepted"),
        invited_at=TEXT,
        accepted_at=TEXT,
        expires_at=TEXT,
        rbac_group_ids=list_of(TEXT),
    ),
    "WorkspaceAccount": record(
        type=is_exactly("service_account"),
        id=TEXT,
        name=TEXT,
        description=_OR_TEXT,
        organization_role=one_of("admin", "developer"),
        created_at=TEXT,
        created_by_actor_id=_OR_TEXT,
        updated_at=TEXT,
        updated_by_actor_id=NULL,
        archived_at=_OR_TEXT,
        archived_by_actor_id=NULL,
    ),
    "WorkspaceAccountMember": record(
        type=is_exactly("service_account_workspace_member"),
        service_account_id=TEXT,
        workspace_id=TEXT,
        workspace_role=_ROLE,
        implicit=FLAG,
        created_by_actor_id=NULL,
    ),
    "OrganizationRateLimit": record(
        type=is_exactly("rate_limit"),
        id=TEXT,
        group=_GROUP,
        models=list_of(TEXT),
        limits=list_of(record(type=TEXT, value=WHOLE)),
    ),
    "WorkspaceRateLimit": record(
        type=is_exactly("workspace_rate_limit"),
        workspace_id=TEXT,
        rate_limit_id=TEXT,
        group=_GROUP,
        models=list_of(TEXT),
        limits=list_of(
            record(
                type=TEXT,
                value=WHOLE,
                org_limit=or_null(WHOLE),
                source=record(type=one_of("workspace", "organization")),
            )
        ),
    ),
    "EffectiveSpendLimit": record(
        actor=record(
            type=is_exactly("user_actor"),
            user_id=TEXT,
            name=TEXT,
            email_address=_OR_TEXT,
            deleted=FLAG,
        ),
        amount=TEXT,
        currency=is_exactly("USD"),
        period=one_of("daily", "weekly", "monthly"),
        period_to_date_spend=TEXT,
        scope=_SCOPE,
        source=_SCOPE,
        spend_limit_id=TEXT,
    ),
    "MessagesUsage": record(
        uncached_input_tokens=WHOLE,
        cache_creation=record(ephemeral_1h_input_tokens=WHOLE, ephemeral_5m_input_tokens=WHOLE),
        cache_read_input_tokens=WHOLE,
        output_tokens=WHOLE,
        server_tool_use=record(web_search_requests=WHOLE),
        account_id=_OR_TEXT,
        api_key_id=_OR_TEXT,
        model=_OR_TEXT,
        workspace_id=_OR_TEXT,
        service_account_id=NULL,
        **_NOT_TOLD,
    ),
    "Cost": record(
        currency=is_exactly("USD"),
        amount=TEXT,
        workspace_id=_OR_TEXT,
        description=_OR_TEXT,
        model=_OR_TEXT,
        cost_type=NULL,
        token_type=NULL,
        **_NOT_TOLD,
    ),
}


def _one(name: str) -> Answers:
    return Answers(ref(name))


def _page(name: str) -> Answers:
    """A page that is continued after its last id."""
    return Answers(
        record(data=list_of(ref(name)), first_id=_OR_TEXT, last_id=_OR_TEXT, has_more=FLAG)
    )


def _token_page(name: str) -> Answers:
    """A page that says where the next one begins."""
    return Answers(record(data=list_of(ref(name)), next_page=_OR_TEXT))


def _report(name: str) -> Answers:
    bucket = record(starting_at=TEXT, ending_at=TEXT, results=list_of(ref(name)))
    return Answers(record(data=list_of(bucket), has_more=FLAG, next_page=_OR_TEXT))


_BASE: Final = "/v1/organizations"
_WORKSPACE: Final = f"{_BASE}/workspaces/{{workspace_id}}"
_ACCOUNT: Final = f"{_BASE}/service_accounts/{{account_id}}"
_IN_WORKSPACE: Final = f"{_WORKSPACE}/service_accounts"
_MEMBER: Final = f"{_WORKSPACE}/members/{{user_id}}"
_LEFT: Final = Answers(
    record(
        type=is_exactly("service_account_workspace_member_deleted"),
        service_account_id=TEXT,
        workspace_id=TEXT,
    )
)
ROUTES: Final[dict[str, Answers | None]] = {
    f"GET {_BASE}/me": _one("Organization"),
    f"POST {_BASE}/workspaces": _one("Workspace"),
    f"GET {_BASE}/workspaces": _page("Workspace"),
    f"GET {_WORKSPACE}": _one("Workspace"),
    f"POST {_WORKSPACE}": _one("Workspace"),
    f"POST {_WORKSPACE}/archive": _one("Workspace"),
    f"GET {_WORKSPACE}/members": _page("WorkspaceMember"),
    f"POST {_WORKSPACE}/members": _one("WorkspaceMember"),
    f"GET {_MEMBER}": _one("WorkspaceMember"),
    f"POST {_MEMBER}": _one("WorkspaceMember"),
    f"DELETE {_MEMBER}": Answers(
        record(type=is_exactly("workspace_member_deleted"), user_id=TEXT, workspace_id=TEXT)
    ),
    f"POST {_BASE}/invites": _one("WorkspaceInvite"),
    f"GET {_BASE}/invites": _page("WorkspaceInvite"),
    f"GET {_BASE}/invites/{{invite_id}}": _one("WorkspaceInvite"),
    # It was accepted when it was made, so it can't be taken back.
    f"DELETE {_BASE}/invites/{{invite_id}}": None,
    f"GET {_BASE}/api_keys": _page("WorkspaceApiKey"),
    f"GET {_BASE}/api_keys/{{key_id}}": _one("WorkspaceApiKey"),
    f"POST {_BASE}/api_keys/{{key_id}}": _one("WorkspaceApiKey"),
    f"GET {_BASE}/users": _page("WorkspaceUser"),
    f"GET {_BASE}/users/{{user_id}}": _one("WorkspaceUser"),
    f"POST {_BASE}/users/{{user_id}}": _one("WorkspaceUser"),
    f"DELETE {_BASE}/users/{{user_id}}": Answers(record(type=is_exactly("user_deleted"), id=TEXT)),
    f"POST {_BASE}/service_accounts": _one("WorkspaceAccount"),
    f"GET {_BASE}/service_accounts": _token_page("WorkspaceAccount"),
    f"GET {_ACCOUNT}": _one("WorkspaceAccount"),
    f"POST {_ACCOUNT}": _one("WorkspaceAccount"),
    f"POST {_ACCOUNT}/archive": _one("WorkspaceAccount"),
    f"GET {_ACCOUNT}/workspaces": _token_page("WorkspaceAccountMember"),
    f"POST {_ACCOUNT}/workspaces": _one("WorkspaceAccountMember"),
    f"DELETE {_ACCOUNT}/workspaces/{{workspace_id}}": _LEFT,
    f"GET {_IN_WORKSPACE}": _token_page("WorkspaceAccountMember"),
    f"POST {_IN_WORKSPACE}": _one("WorkspaceAccountMember"),
    f"GET {_IN_WORKSPACE}/{{account_id}}": _one("WorkspaceAccountMember"),
    f"POST {_IN_WORKSPACE}/{{account_id}}": _one("WorkspaceAccountMember"),
    f"DELETE {_IN_WORKSPACE}/{{account_id}}": _LEFT,
    f"GET {_BASE}/rate_limits": _token_page("OrganizationRateLimit"),
    f"GET {_WORKSPACE}/rate_limits": _token_page("WorkspaceRateLimit"),
    f"POST {_WORKSPACE}/rate_limits/{{rate_limit_id}}": _one("WorkspaceRateLimit"),
    f"GET {_BASE}/spend_limits/effective": _token_page("EffectiveSpendLimit"),
    f"GET {_BASE}/usage_report/messages": _report("MessagesUsage"),
    f"GET {_BASE}/cost_report": _report("Cost"),
}
