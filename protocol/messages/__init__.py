"""The unions of messages that each socket carries: what a side may receive, nothing else.

`…Command` travels from a gateway to a worker of that role, `…Event` the other way.
"""

from protocol.messages.access import (
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
    LimitState,
    ListKeys,
    Renew,
    RevokeKey,
    Settle,
    Settled,
)
from protocol.messages.base import Message, Part
from protocol.messages.control import (
    AuthOffer,
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
from protocol.messages.generation import (
    Abort,
    Delta,
    Extend,
    Finished,
    FinishReason,
    Generate,
    Grammar,
    Prepare,
    Prepared,
    PrepareKind,
    SamplingParams,
    StepOutput,
)
from protocol.messages.toolparse import (
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

GatewayControl = Heartbeat | Drain | Goodbye | Refused | Pong
"""What a gateway sends to a worker of any role about their connection."""

WorkerControl = Ready | Heartbeat | Drain | Goodbye | Failure | Ping
"""What a worker of any role sends about its connection, and `Failure` for any request."""

EngineCommand = Prepare | Generate | Extend | Abort | GatewayControl
EngineEvent = Prepared | StepOutput | WorkerControl
AuthCommand = (
    Authorize | Adjust | Settle | Renew | CreateKey | ListKeys | RevokeKey | GatewayControl
)
AuthEvent = Granted | Denied | Adjusted | Settled | Keys | WorkerControl
ParserCommand = OpenParse | ParseBatch | CloseParse | GatewayControl
ParserEvent = ParseOpened | ParsedBatch | WorkerControl

AnyMessage = EngineCommand | EngineEvent | AuthCommand | AuthEvent | ParserCommand | ParserEvent
"""Every message there is; for tools and tests, never for a socket."""

__all__ = [
    "Abort",
    "Adjust",
    "Adjusted",
    "AnyMessage",
    "AuthCommand",
    "AuthEvent",
    "AuthOffer",
    "Authorize",
    "CloseParse",
    "CreateKey",
    "Credits",
    "Delta",
    "Denied",
    "Drain",
    "EngineCommand",
    "EngineEvent",
    "EngineOffer",
    "Extend",
    "Failure",
    "FinishReason",
    "Finished",
    "GatewayControl",
    "Generate",
    "Goodbye",
    "Grammar",
    "Granted",
    "Heartbeat",
    "KeyRecord",
    "KeyRole",
    "Keys",
    "LeaseReport",
    "LimitState",
    "ListKeys",
    "Load",
    "Message",
    "OpenParse",
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
    "Ready",
    "Refused",
    "Renew",
    "RevokeKey",
    "Role",
    "SamplingDefaults",
    "SamplingParams",
    "Settle",
    "Settled",
    "StepOutput",
    "ToolChoiceMode",
    "Usage",
    "WorkerControl",
]
