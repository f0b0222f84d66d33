"""Where gateways listen and workers dial: addresses from settings, names resolved repeatedly."""

import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import ConfigurationError
from protocol.wire.messages.control import Role

_logger = logging.getLogger("penstock.endpoints")

ENDPOINT_SETTINGS: Mapping[Role, str] = {
    "engine": "PENSTOCK_ENGINE_ENDPOINT",
    "auth": "PENSTOCK_AUTH_ENDPOINT",
    "toolparser": "PENSTOCK_TOOLPARSER_ENDPOINT",
}
"""The setting of each role: what the gateway binds, and what workers of the role dial."""

MAX_IPC_PATH_BYTES = 107
"""`sun_path` of unix(7) is 108 bytes with its closing zero."""

_TCP = re.compile(r"tcp://(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>\d{1,5}|\*)")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")

Resolver = Callable[[str, int], Sequence[str]]
"""Host name and port to IP addresses; may block; raises OSError when it can't."""


@dataclass(frozen=True)
class Endpoint:
    """One checked address.

    Attributes:
        text: As ZeroMQ wants it, `ipc:///run/x.sock` or `tcp://host:port`.
        host: For tcp the host without brackets, `*` for every interface; empty for ipc.
        port: For tcp; 0 asks for a free one.
    """

    text: str
    host: str = ""
    port: int = 0

    @property
    def is_ipc(self) -> bool:
        """Whether it is a Unix socket."""
        return not self.host

    @property
    def ipc_path(self) -> str:
        """The path of the Unix socket."""
        return self.text.removeprefix("ipc://")

    @property
    def needs_resolving(self) -> bool:
        """Whether the host is a name, not an address."""
        return not self.is_ipc and _as_address(self.host) is None


def bind_endpoint(environ: Mapping[str, str], role: Role, *, secured: bool) -> Endpoint:
    """What a gateway binds for a role.

    Raises:
        ConfigurationError: Missing, malformed, more than one, or plaintext beyond loopback.
    """
    setting = ENDPOINT_SETTINGS[role]
    endpoints = _read(environ, setting, secured=secured)
    if len(endpoints) != 1:
        raise ConfigurationError(f"{setting} must be one endpoint for a gateway, not a list.")
    return endpoints[0]


def dial_endpoints(
    environ: Mapping[str, str], role: Role, *, secured: bool
) -> tuple[Endpoint, ...]:
    """What a worker of a role dials: one endpoint, or several with commas between.

    Raises:
        ConfigurationError: Missing, malformed, or plaintext beyond loopback.
    """
    setting = ENDPOINT_SETTINGS[role]
    endpoints = _read(environ, setting, secured=secured)
    for endpoint in endpoints:
        if not endpoint.is_ipc and (endpoint.host == "*" or endpoint.port == 0):
            raise ConfigurationError(
                f"{setting}: {endpoint.text} can be bound but not dialled; name a host and a port."
            )
    return endpoints


def _read(environ: Mapping[str, str], setting: str, *, secured: bool) -> tuple[Endpoint, ...]:
    texts = [part.strip() for part in environ.get(setting, "").split(",") if part.strip()]
    if not texts:
        raise ConfigurationError(
            f"{setting} is not set; give it ipc:///path/to/socket or tcp://host:port."
        )
    return tuple(parse_endpoint(text, setting=setting, secured=secured) for text in texts)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    address = _as_address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def parse_endpoint(text: str, *, setting: str, secured: bool) -> Endpoint:
    """Check one endpoint.

    Args:
        text: `ipc:///path`, `tcp://host:port`, `tcp://[::1]:port`, `tcp://*:port`.
        setting: The setting it came from, for error messages.
        secured: Whether keys are loaded; without them tcp stays on the loopback interface.

    Raises:
        ConfigurationError: Malformed, an ipc path too long, or plaintext beyond loopback.
    """
    if text.startswith("ipc://"):
        return _parse_ipc(text, setting)
    match = _TCP.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"{setting}: {text!r} is not an endpoint; use ipc:///path/to/socket or tcp://host:port."
        )
    host = match["ipv6"] or match["host"]
    port = 0 if match["port"] == "*" else int(match["port"])
    address = _as_address(host)
    if port > 65535 or (match["ipv6"] is not None and address is None):
        raise ConfigurationError(f"{setting}: {text!r} has no valid address and port.")
    if address is None and host != "*" and _HOST_NAME.fullmatch(host) is None:
        raise ConfigurationError(f"{setting}: {host!r} is not a host name.")
    if not secured and not is_loopback(host):
        raise ConfigurationError(
            f"{setting}: {text} leaves this machine in plaintext. Make keys with `penstock keygen` "
            "and set PENSTOCK_KEY_DIR, or use ipc:// or a loopback address."
        )
    return Endpoint(text, host, port)


def _parse_ipc(text: str, setting: str) -> Endpoint:
    path = text.removeprefix("ipc://")
    if not path.startswith("/"):
        raise ConfigurationError(f"{setting}: {text!r} needs an absolute path, ipc:///path.")
    num_bytes = len(path.encode())
    if num_bytes > MAX_IPC_PATH_BYTES:
        raise ConfigurationError(
            f"{setting}: the socket path {path} has {num_bytes} bytes, the system allows "
            f"{MAX_IPC_PATH_BYTES}; choose a shorter folder."
        )
    return Endpoint(text)


def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host name, sorted; IPv4 only when it has any.

    One family, because a gateway on both would be dialled twice.

    Raises:
        OSError: The name can't be resolved now.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[int, set[str]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(int(family), set()).add(str(address[0]))
    return sorted(by_family.get(int(socket.AF_INET)) or by_family.get(int(socket.AF_INET6), set()))


def resolve_endpoints(
    endpoints: Sequence[Endpoint], resolve: Resolver = resolve_host
) -> tuple[str, ...] | None:
    """The concrete addresses to dial, without duplicates, in order; blocks while resolving.

    Returns:
        None when a name could not be resolved, so that the caller keeps what it has.
    """
    addresses: dict[str, None] = {}
    is_complete = True
    for endpoint in endpoints:
        if not endpoint.needs_resolving:
            addresses[endpoint.text] = None
            continue
        try:
            hosts = resolve(endpoint.host, endpoint.port)
        except OSError as error:
            _logger.debug("cannot resolve %s: %s", endpoint.host, error)
            is_complete = False
            continue
        for host in hosts:
            bracketed = f"[{host}]" if ":" in host else host
            addresses[f"tcp://{bracketed}:{endpoint.port}"] = None
    if not addresses and not is_complete:
        return None
    return tuple(addresses)


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
