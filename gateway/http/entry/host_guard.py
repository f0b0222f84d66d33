"""Keeps web pages away from a server on loopback, or from what it serves there without a key.

A page in a browser on this machine can reach loopback addresses: by DNS rebinding its requests
carry a foreign `Host`, cross-site ones a foreign `Origin`. Both are refused.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gateway.config import LOOPBACK_NAMES
from gateway.errors import ForbiddenOriginError

_MAX_SHOWN_CHARACTERS = 100


class HostGuard:
    """Knows the names that this server goes by.

    Args:
        allowed_hosts: Beside the names of loopback.
    """

    def __init__(self, allowed_hosts: Iterable[str]) -> None:
        self._allowed = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}

    def refusal(self, headers: Headers) -> ForbiddenOriginError | None:
        """Why a request may come from a foreign page; None when it does not."""
        host = _host_name("//" + headers.get("host", ""))
        if host not in self._allowed:
            return ForbiddenOriginError(
                f"The host {host[:_MAX_SHOWN_CHARACTERS]!r} is not served. Use 127.0.0.1 or "
                "localhost, or name it in PENSTOCK_ALLOWED_HOSTS."
            )
        origin = headers.get("origin")
        if origin is not None and _host_name(origin) not in self._allowed:
            return ForbiddenOriginError(
                "Pages of other origins may not use this server without a key; name their host in "
                "PENSTOCK_ALLOWED_HOSTS to allow them."
            )
        return None


def _host_name(url: str) -> str:
    """The lower-case host of a URL, without port and brackets; empty when there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
