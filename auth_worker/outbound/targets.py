"""Which addresses this process may connect to: public ones, and internal ones that are listed.

Whoever may define a webhook would otherwise read, through this process, what only its network
reaches: cloud metadata, databases, neighbours (server-side request forgery, OWASP API7:2023).
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from auth_worker.errors import OutboundError
from auth_worker.outbound.lookup import Lookup, Resolve
from auth_worker.principals.key_rules import Address, Network
from protocol.runtime.addresses import is_internal, unwrapped

MAX_URL_CHARS = 2048
MAX_ADDRESSES = 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads.

    Attributes:
        host: As it stands in the URL, in lower case and without brackets.
        path: With the query; what the request line says.
    """

    is_tls: bool
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """What `Host` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """What a URL says, if it is one that may be asked for at all.

    Raises:
        OutboundError: It is no http or https URL, or holds what it shouldn't.
    """
    if len(url) > MAX_URL_CHARS or not all("!" <= char <= "~" for char in url):
        raise OutboundError(f"a URL has at most {MAX_URL_CHARS} printable ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise OutboundError(f"it is no URL ({error})") from error
    if parts.scheme not in ("https", "http") or not host:
        raise OutboundError("it is no https:// or http:// URL with a host")
    if parts.username is not None or parts.password is not None or "#" in url:
        raise OutboundError("a URL here has neither a user name nor a fragment")
    is_tls = parts.scheme == "https"
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else ""
    return Target(is_tls, host, port or (443 if is_tls else 80), path + query)


class TargetGuard:
    """Resolves a host once and says which addresses of it may be connected to.

    Args:
        listed: Internal networks that are allowed anyway.
        resolve: Asks the name service.
    """

    def __init__(
        self, listed: Sequence[Network] = (), resolve: Resolve = socket.getaddrinfo
    ) -> None:
        self._listed = tuple(listed)
        self._lookup = Lookup(resolve)

    def check(self, target: Target) -> None:
        """Refuse what can be refused without asking anybody: an address that is written out.

        Raises:
            OutboundError: It is internal and not listed, or plain http to anything but a listed
                address.
        """
        try:
            address = ipaddress.ip_address(target.host)
        except ValueError:
            return
        self._check(target, unwrapped(address))

    def addresses(self, target: Target, timeout_s: float) -> list[str]:
        """The addresses of a target, every one of them checked.

        One that may not be reached spoils the rest: a name that leads inside as well as outside is
        no target, whichever address would have been taken first.

        Raises:
            OutboundError: The name isn't known in time, or leads where it may not.
        """
        try:
            found = self._lookup(target.host, target.port, timeout_s)
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"the host {target.host} is not known ({error})") from error
        addresses: list[str] = []
        for *_, sockaddr in found[:MAX_ADDRESSES]:
            text = str(sockaddr[0])
            self._check(target, unwrapped(ipaddress.ip_address(text.partition("%")[0])))
            if text not in addresses:
                addresses.append(text)
        if not addresses:
            raise OutboundError(f"the host {target.host} has no address")
        return addresses

    def _check(self, target: Target, address: Address) -> None:
        if any(address in network for network in self._listed):
            return
        if is_internal(address):
            raise OutboundError(
                f"{target.host} leads to {address}, which is no public address; list it in "
                "PENSTOCK_INTERNAL_TARGETS if that is meant"
            )
        if not target.is_tls:
            raise OutboundError("plain http:// is for addresses in PENSTOCK_INTERNAL_TARGETS only")
