"""The unions of messages that each socket carries: what a side may receive, nothing else.

`…Command` travels from a gateway to a worker of that role, `…Event` the other way. A file a socket;
a change here raises the minor in `protocol/version.py` and adds golden frames.
Others import the messages from here; the gateway builds those that it sends in `gateway.bridge`.
May import `protocol.errors` and `protocol.version`.
"""

from protocol.wire.messages.access import (
    Adjust,
    Adjusted,
    Authorize,
    CreateKey,
    Denied,
    Granted,
    KeyRecord,
    KeyRole,
    Keys,
    LeaseReport,
    ListKeys,
    OrphanUsage,
    OrphanUsageNoted,
    Renew,
    RevokeKey,
    Scope,
    Settle,
    Settled,
    StreamUsage,
    TokenWanted,
)
from protocol.wire.messages.administration import (
    Actor,
    AnswerClaimed,
    AnswerKept,
    AuditOutcome,
    AuditPage,
    AuditRecord,
    ChangeKeyStatus,
    ClaimAnswer,
    CountKeys,
    FindKeys,
    KeepAnswer,
    KeyAction,
    KeyClosure,
    KeyDetails,
    KeysCounted,
    KeySettings,
    KeysFound,
    KeyStatus,
    MakeKey,
    MemberRole,
    PrincipalRole,
    PriorityClass,
    ReadAudit,
    RotateKey,
    UpdateKey,
    UserKind,
)
from protocol.wire.messages.base import Message, Part
from protocol.wire.messages.classification import Classified, Classify
from protocol.wire.messages.control import (
    AuthOffer,
    BlockPlacement,
    Credits,
    Drain,
    EngineOffer,
    Failure,
    Goodbye,
    Heartbeat,
    Load,
    ParserOffer,
    Phase,
    Ping,
    Pong,
    Ready,
    Refused,
    Role,
    SamplingDefaults,
    Usage,
)
from protocol.wire.messages.embedding import Embed, Embedded
from protocol.wire.messages.generation import (
    ALL_CHOICES,
    NUM_ALONE_TOKENS,
    Abort,
    CacheCleared,
    CachedBlocks,
    Cancel,
    ClearCache,
    Delta,
    Detokenize,
    Detokenized,
    Extend,
    Finished,
    FinishReason,
    Generate,
    Grammar,
    Prepare,
    Prepared,
    PrepareKind,
    Profile,
    Profiled,
    SamplingParams,
    StepOutput,
    Thought,
    TokenLogprob,
    TokenLogprobs,
)
from protocol.wire.messages.limits import LimitRefusal, LimitState, LimitWarning
from protocol.wire.messages.metrics import MetricKind, Metrics, MetricSample
from protocol.wire.messages.people import (
    ChangeResource,
    FindResources,
    LimitHolder,
    LimitMeasure,
    LimitSettings,
    LimitWindow,
    MakeResource,
    Member,
    PriceSettings,
    Resource,
    ResourceAction,
    ResourceKind,
    ResourceSettings,
    ResourcesFound,
    SetMember,
    TeamSettings,
    UpdateResource,
    UserSettings,
    WebhookSettings,
    WebhookState,
)
from protocol.wire.messages.scoring import Score, Scored, ScoredQuestion
from protocol.wire.messages.toolparse import (
    CloseParse,
    OpenParse,
    ParseBatch,
    ParsedBatch,
    ParsedDelta,
    ParseDelta,
    ParseEvent,
    ParseOpened,
    ToolChoiceMode,
)
from protocol.wire.messages.usage import (
    LimitStanding,
    ReadStanding,
    ReadUsage,
    Standing,
    UsageBucket,
    UsageFound,
    UsageGroup,
    UsageRow,
)

GatewayControl = Heartbeat | Drain | Goodbye | Refused | Pong
"""What a gateway sends to a worker of any role about their connection."""

WorkerControl = Ready | Heartbeat | Metrics | Drain | Goodbye | Failure | Ping
"""What a worker of any role sends about its connection, and `Failure` for any request."""

EngineCommand = (
    Prepare
    | Detokenize
    | Embed
    | Score
    | Classify
    | Generate
    | Extend
    | Abort
    | Cancel
    | OrphanUsageNoted
    | Profile
    | ClearCache
    | GatewayControl
)
EngineEvent = (
    Prepared
    | Detokenized
    | Embedded
    | Scored
    | Classified
    | StepOutput
    | CachedBlocks
    | OrphanUsage
    | Profiled
    | CacheCleared
    | WorkerControl
)
AuthCommand = (
    Authorize
    | Adjust
    | Settle
    | Renew
    | OrphanUsage
    | CreateKey
    | ListKeys
    | RevokeKey
    | MakeKey
    | UpdateKey
    | RotateKey
    | ChangeKeyStatus
    | FindKeys
    | CountKeys
    | ReadAudit
    | ClaimAnswer
    | KeepAnswer
    | MakeResource
    | UpdateResource
    | ChangeResource
    | SetMember
    | FindResources
    | ReadUsage
    | ReadStanding
    | GatewayControl
)
AuthEvent = (
    Granted
    | TokenWanted
    | Denied
    | Adjusted
    | Settled
    | OrphanUsageNoted
    | Keys
    | KeysFound
    | KeysCounted
    | AuditPage
    | AnswerClaimed
    | AnswerKept
    | ResourcesFound
    | UsageFound
    | Standing
    | WorkerControl
)
ParserCommand = OpenParse | ParseBatch | CloseParse | GatewayControl
ParserEvent = ParseOpened | ParsedBatch | WorkerControl

AnyMessage = EngineCommand | EngineEvent | AuthCommand | AuthEvent | ParserCommand | ParserEvent
"""Every message there is; for tools and tests, never for a socket."""

__all__ = [
    "ALL_CHOICES",
    "NUM_ALONE_TOKENS",
    "Abort",
    "Actor",
    "Adjust",
    "Adjusted",
    "AnswerClaimed",
    "AnswerKept",
    "AnyMessage",
    "AuditOutcome",
    "AuditPage",
    "AuditRecord",
    "AuthCommand",
    "AuthEvent",
    "AuthOffer",
    "Authorize",
    "BlockPlacement",
    "CacheCleared",
    "CachedBlocks",
    "Cancel",
    "ChangeKeyStatus",
    "ChangeResource",
    "ClaimAnswer",
    "Classified",
    "Classify",
    "ClearCache",
    "CloseParse",
    "CountKeys",
    "CreateKey",
    "Credits",
    "Delta",
    "Denied",
    "Detokenize",
    "Detokenized",
    "Drain",
    "Embed",
    "Embedded",
    "EngineCommand",
    "EngineEvent",
    "EngineOffer",
    "Extend",
    "Failure",
    "FindKeys",
    "FindResources",
    "FinishReason",
    "Finished",
    "GatewayControl",
    "Generate",
    "Goodbye",
    "Grammar",
    "Granted",
    "Heartbeat",
    "KeepAnswer",
    "KeyAction",
    "KeyClosure",
    "KeyDetails",
    "KeyRecord",
    "KeyRole",
    "KeySettings",
    "KeyStatus",
    "Keys",
    "KeysCounted",
    "KeysFound",
    "LeaseReport",
    "LimitHolder",
    "LimitMeasure",
    "LimitRefusal",
    "LimitSettings",
    "LimitStanding",
    "LimitState",
    "LimitWarning",
    "LimitWindow",
    "ListKeys",
    "Load",
    "MakeKey",
    "MakeResource",
    "Member",
    "MemberRole",
    "Message",
    "MetricKind",
    "MetricSample",
    "Metrics",
    "OpenParse",
    "OrphanUsage",
    "OrphanUsageNoted",
    "ParseBatch",
    "ParseDelta",
    "ParseEvent",
    "ParseOpened",
    "ParsedBatch",
    "ParsedDelta",
    "ParserCommand",
    "ParserEvent",
    "ParserOffer",
    "Part",
    "Phase",
    "Ping",
    "Pong",
    "Prepare",
    "PrepareKind",
    "Prepared",
    "PriceSettings",
    "PrincipalRole",
    "PriorityClass",
    "Profile",
    "Profiled",
    "ReadAudit",
    "ReadStanding",
    "ReadUsage",
    "Ready",
    "Refused",
    "Renew",
    "Resource",
    "ResourceAction",
    "ResourceKind",
    "ResourceSettings",
    "ResourcesFound",
    "RevokeKey",
    "Role",
    "RotateKey",
    "SamplingDefaults",
    "SamplingParams",
    "Scope",
    "Score",
    "Scored",
    "ScoredQuestion",
    "SetMember",
    "Settle",
    "Settled",
    "Standing",
    "StepOutput",
    "StreamUsage",
    "TeamSettings",
    "Thought",
    "TokenLogprob",
    "TokenLogprobs",
    "TokenWanted",
    "ToolChoiceMode",
    "UpdateKey",
    "UpdateResource",
    "Usage",
    "UsageBucket",
    "UsageFound",
    "UsageGroup",
    "UsageRow",
    "UserKind",
    "UserSettings",
    "WebhookSettings",
    "WebhookState",
    "WorkerControl",
]
