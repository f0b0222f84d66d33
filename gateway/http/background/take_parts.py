"""What every attempt at a background response uses."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.http.openresponses.convert import AskedResponse
from gateway.request.factory import RequestFactory
from gateway.storage.store import Store
from gateway.telemetry.request_trace import RequestTraces
from gateway.tools.tool_servers import ToolServers

Reparse = Callable[[bytes, bytes], Awaitable[AskedResponse]]


@dataclass(frozen=True, slots=True)
class TakeParts:
    """What every attempt uses.

    Attributes:
        store: Where the responses are queued.
        requests: Makes their requests.
        reparse: Parses a frame again, for a caller.
        servers: Whose tools they may use.
        max_tool_calls: Of one response.
        wall_clock: Unix seconds.
        traces: Begins those of responses; None for none.
        tell: There are more events of a response.
    """

    store: Store
    requests: RequestFactory
    reparse: Reparse
    servers: ToolServers
    max_tool_calls: int
    wall_clock: Callable[[], float]
    traces: RequestTraces | None
    tell: Callable[[str], None]
