"""Bodies of OpenAI's and Anthropic's organization APIs: the fields that can be honoured here."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.http.schemas.administration.settings import MAX_LIMIT, Name
from gateway.http.schemas.base.body import RequestModel

MAX_CENTS = MAX_LIMIT // 10_000

_Seconds = Annotated[int, Field(ge=1, le=100 * 366 * 86_400)]
_Scopes = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=100)]
_Rate = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
_Email = Annotated[str, Field(min_length=3, max_length=200, pattern=r"^[^@\s]+@[^@\s]+$")]
_WorkspaceRole = Literal["workspace_admin", "workspace_developer", "workspace_user"]
_Description = Annotated[str, Field(max_length=500)]
_Model = Annotated[str, Field(min_length=1, max_length=200)]


class ProjectRequest(RequestModel):
    """A project to be made or renamed."""

    name: Name


class AdminKeyRequest(RequestModel):
    """A key of an administrator to be made."""

    name: Name
    expires_in_seconds: _Seconds | None = None


class ServiceAccountRequest(RequestModel):
    """A service account to be made, with a key unless it says otherwise."""

    name: Name
    expires_in_seconds: _Seconds | None = None
    create_service_account_only: bool | None = None


class ChangeServiceAccountRequest(RequestModel):
    """What is to be different about a service account."""

    name: Name | None = None
    role: Literal["member", "owner"] | None = None


class AccountKeyRequest(RequestModel):
    """A further key of a service account."""

    name: Name | None = None
    scopes: _Scopes | None = None
    expires_in_seconds: _Seconds | None = None


class ChangeProjectKeyRequest(RequestModel):
    """What is to be different about a key."""

    scopes: _Scopes | None = None
    expires_in_seconds: _Seconds | None = None


class ProjectUserRequest(RequestModel):
    """A user to be a member of a project; known by id."""

    user_id: Annotated[str, Field(min_length=1, max_length=64)]
    role: Literal["member", "owner"]


class ChangeProjectUserRequest(RequestModel):
    """Another role in a project."""

    role: Literal["member", "owner"]


class ChangeUserRoleRequest(RequestModel):
    """Another role in the organization: an owner is an administrator here, a reader a user."""

    role: Literal["owner", "reader"]


class InvitedProject(RequestModel):
    """A project that an invited user is a member of."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    role: Literal["member", "owner"]


class InviteRequest(RequestModel):
    """A user to be made, known by an e-mail address."""

    email: _Email
    role: Literal["owner", "reader"]
    projects: Annotated[list[InvitedProject], Field(max_length=100)] | None = None


class RateLimitRequest(RequestModel):
    """Limits of a project for one model; what isn't sent stays."""

    max_requests_per_1_minute: _Rate | None = None
    max_tokens_per_1_minute: _Rate | None = None
    max_requests_per_1_day: _Rate | None = None


class ModelPermissionsRequest(RequestModel):
    """The models of a project: only these, or (empty) all but none."""

    mode: Literal["allow_list", "deny_list"]
    model_ids: Annotated[list[_Model], Field(max_length=100)]


class SpendLimitRequest(RequestModel):
    """A budget a month, in cents."""

    currency: Literal["USD"]
    interval: Literal["month"]
    threshold_amount: Annotated[int, Field(ge=0, le=MAX_CENTS)]


class NotificationChannel(RequestModel):
    """Whom an alert is told: this server sends no e-mail, so there are no recipients."""

    type: Literal["email"]
    recipients: Annotated[list[str], Field(max_length=0)]
    subject_prefix: str | None = None
    """Of e-mail; whoever sends one is told that it has no effect."""


class SpendAlertRequest(SpendLimitRequest):
    """An amount a month that is put on record when it is passed; a webhook tells of it."""

    notification_channel: NotificationChannel


class WorkspaceRequest(RequestModel):
    """A workspace to be made or renamed."""

    name: Name


class AnthropicRoleRequest(RequestModel):
    """Another role of a user, of which there is one to give."""

    role: Literal["user"]


class AnthropicInviteRequest(RequestModel):
    """A user to be made, known by an e-mail address."""

    email: _Email
    role: Literal["user"]


class WorkspaceMemberRequest(RequestModel):
    """A user to be a member of a workspace: an administrator of it, or not."""

    user_id: Annotated[str, Field(min_length=1, max_length=64)]
    workspace_role: _WorkspaceRole


class ChangeWorkspaceMemberRequest(RequestModel):
    """Another role in a workspace."""

    workspace_role: _WorkspaceRole


class WorkspaceRateValue(RequestModel):
    """A limit of one type; null takes it away."""

    type: Literal[
        "requests_per_minute",
        "input_tokens_per_minute",
        "output_tokens_per_minute",
        "tokens_per_minute",
        "tokens_per_day",
    ]
    value: _Rate | None


class WorkspaceRateLimitRequest(RequestModel):
    """Limits of a workspace for one model; types that aren't sent stay."""

    limits: Annotated[list[WorkspaceRateValue], Field(min_length=1, max_length=16)]


class WorkspaceAccountRequest(RequestModel):
    """A service account to be made."""

    name: Name
    description: _Description | None = None
    organization_role: Literal["developer"] | None = None


class ChangeWorkspaceAccountRequest(RequestModel):
    """What is to be different about a service account."""

    description: _Description | None = None
    organization_role: Literal["developer"] | None = None


class AccountMemberRequest(RequestModel):
    """The workspace that a service account is to be in."""

    workspace_id: Annotated[str, Field(min_length=1, max_length=64)]
    workspace_role: _WorkspaceRole


class AccountOfWorkspaceRequest(RequestModel):
    """The service account that is to be in a workspace."""

    service_account_id: Annotated[str, Field(min_length=1, max_length=64)]
    workspace_role: _WorkspaceRole


class WorkspaceKeyRequest(RequestModel):
    """What is to be different about a key."""

    name: Name | None = None
    status: Literal["active", "inactive", "archived"] | None = None
