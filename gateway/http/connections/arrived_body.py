"""The body of a request that has come whole before anybody asked for it, as nearly all do."""

from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def arrived_body(receive: Receive) -> bytes | None:
    """The body, taken from the connection; None where it has to be waited for.

    Waiting, with a timer to bound it, costs ten times as much.

    Args:
        receive: Of the request, as the server gave it.
    """
    cycle = getattr(receive, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or cycle.more_body or cycle.disconnected:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    return body
