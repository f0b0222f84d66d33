"""What happens in a response: what a model does, and what tools of this server do."""

from dataclasses import dataclass
from typing import Any

from gateway.request.delivery.events import GenerationEvent


@dataclass(slots=True)
class ToolsListing:
    """The tools of a server are being listed, for a response whose tools this server runs.

    Attributes:
        mark: Of the list (`ServerTools.list_mark`).
    """

    label: str
    mark: str


@dataclass(slots=True)
class ToolsListed:
    """They are listed, or can't be.

    Attributes:
        tools: As items show them.
        error: Why there are none.
    """

    label: str
    tools: list[Any]
    error: str | None = None


@dataclass(slots=True)
class ApprovedCallBegun:
    """A call that somebody has approved is made.

    Attributes:
        id: Of the call, within the response.
        label: Of its server.
        name: Of the tool, as its server calls it.
        arguments: JSON text.
        approval_request_id: Of the item that asked for the approval.
    """

    id: str
    label: str
    name: str
    arguments: str
    approval_request_id: str


@dataclass(slots=True)
class HostedCallRunning:
    """A tool of this server is about to run."""

    id: str


@dataclass(slots=True)
class HostedCallEnded:
    """It has ended.

    Attributes:
        output: What it answered; None where it failed.
        error: An object of OpenAI's `mcp_call`; None where it didn't.
    """

    id: str
    output: str | None = None
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class TurnOver:
    """The model has ended a turn, and another one may follow."""


@dataclass(slots=True)
class CompactionBegun:
    """What is before the last message is being summed up."""


@dataclass(slots=True)
class CompactionEnded:
    """It is summed up.

    Attributes:
        summary: The text that stands for it.
        carried_json: The items that it carries beside that, a JSON array.
    """

    summary: str
    carried_json: str = "[]"


HostedEvent = (
    CompactionBegun
    | CompactionEnded
    | ToolsListing
    | ToolsListed
    | ApprovedCallBegun
    | HostedCallRunning
    | HostedCallEnded
    | TurnOver
)
"""Only of responses of several turns."""
ResponseEvent = GenerationEvent | HostedEvent
