"""What a key may be used for beyond its role: models, routes, addresses, sizes; pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from protocol.wire.messages import Authorize, KeySettings, PriorityClass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIORITIES: Final[dict[PriorityClass, int]] = {"high": -1, "normal": 0, "low": 1}
"""Levels of the gateway's and the engine's queues; lower goes first."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Bounds of one key; see `KeySettings`. Keys without any share one object."""

    scopes: frozenset[str] | None = None
    allowed_models: tuple[str, ...] | None = None
    allowed_endpoints: tuple[str, ...] | None = None
    allowed_networks: tuple[Network, ...] | None = None
    blocked_networks: tuple[Network, ...] = ()
    max_parallel_requests: int | None = None
    max_tokens_per_request: int | None = None
    enable_streaming: bool = True
    enable_function_calling: bool = True
    priority: int = 0

    def refusal(self, command: Authorize) -> str | None:
        """Why a request may not be made with this key; None when it may."""
        if self is NO_RULES:
            return None
        return (
            self._refuse_address(command.address)
            or self._refuse_endpoint(command.endpoint)
            or self._refuse_model(command.model)
            or self._refuse_size(command)
        )

    def allows_endpoint(self, endpoint: str) -> bool:
        """Whether a route template is among those that the key may use."""
        return self.allowed_endpoints is None or _fits(endpoint, self.allowed_endpoints)

    def covers_endpoints(self, others: "KeyRules") -> bool:
        """Whether every route that other rules let through is let through by these."""
        if self.allowed_endpoints is None:
            return True
        wider = self.allowed_endpoints
        return others.allowed_endpoints is not None and all(
            any(_holds_all_of(wide, glob) for wide in wider) for glob in others.allowed_endpoints
        )

    def covers_addresses(self, others: "KeyRules") -> bool:
        """Whether every address that other rules let through is let through by these.

        Said only of networks that lie within one another, not of such that do so together.
        """
        allowed = self.allowed_networks
        if allowed is not None and not (
            others.allowed_networks is not None
            and all(_lies_within(network, allowed) for network in others.allowed_networks)
        ):
            return False
        return all(
            _lies_within(network, others.blocked_networks) for network in self.blocked_networks
        )

    def _refuse_address(self, text: str) -> str | None:
        if self.allowed_networks is None and not self.blocked_networks:
            return None
        address = address_of(text)
        if address is None:
            return "This key may be used from certain addresses only, and this one is not known."
        if any(address in network for network in self.blocked_networks):
            return f"This key may not be used from {text}."
        if self.allowed_networks is not None and not any(
            address in network for network in self.allowed_networks
        ):
            return f"This key may not be used from {text}."
        return None

    def _refuse_endpoint(self, endpoint: str) -> str | None:
        if self.allows_endpoint(endpoint):
            return None
        return f"This key may not use {endpoint}."

    def _refuse_model(self, model: str) -> str | None:
        if not model or self.allowed_models is None or _fits(model, self.allowed_models):
            return None
        return f"This key may not use the model '{model}'."

    def _refuse_size(self, command: Authorize) -> str | None:
        if command.is_streaming and not self.enable_streaming:
            return "This key may not stream; leave `stream` out."
        if command.uses_tools and not self.enable_function_calling:
            return "This key may not use tools."
        limit = self.max_tokens_per_request
        # A gateway of before 1.3 doesn't say what was asked for, only what it reserves.
        asked = command.asked_tokens if command.scope else command.completion_tokens
        if limit is not None and asked > limit:
            return (
                f"This key may generate {limit} tokens a request, all choices together; this one "
                f"asks for {asked}."
            )
        return None


NO_RULES: Final = KeyRules()


def rules_of(settings: KeySettings) -> KeyRules:
    """The rules that settings ask for.

    Raises:
        ValueError: An address or network is none.
    """
    allowed = settings.allowed_ip_addresses
    rules = KeyRules(
        scopes=None if settings.scopes is None else frozenset(settings.scopes),
        allowed_models=settings.allowed_models,
        allowed_endpoints=settings.allowed_endpoints,
        allowed_networks=None if allowed is None else networks_of(allowed),
        blocked_networks=networks_of(settings.blocked_ip_addresses),
        max_parallel_requests=settings.max_parallel_requests,
        max_tokens_per_request=settings.max_tokens_per_request,
        enable_streaming=settings.enable_streaming,
        enable_function_calling=settings.enable_function_calling,
        priority=PRIORITIES[settings.priority],
    )
    return NO_RULES if rules == NO_RULES else rules


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and CIDR networks, IPv4 and IPv6; host bits may be set.

    Raises:
        ValueError: A text is neither.
    """
    return tuple(_network(text) for text in texts)


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            # A client's mapped address is looked at as IPv4, so a mapped network is, too.
            return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}", strict=False)
    return network


@lru_cache(maxsize=4096)
def address_of(text: str) -> Address | None:
    """A client's address, without a zone and as IPv4 where it is one in IPv6's clothes.

    None when the text is no address: whoever has address rules is refused then.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _fits(text: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)


def _holds_all_of(wide: str, glob: str) -> bool:
    """Whether a glob lets through all that another one does; False where that isn't plain."""
    if wide == glob:
        return True
    if not any(char in glob for char in "*?["):
        return fnmatchcase(glob, wide)
    # A `*` takes the other's wildcards for text, which is right; a `?` or a set would not be.
    return "[" not in glob and not any(char in wide for char in "?[") and fnmatchcase(glob, wide)


def _lies_within(network: Network, others: Iterable[Network]) -> bool:
    return any(
        network.version == other.version
        and network.prefixlen >= other.prefixlen
        and network.network_address in other
        for other in others
    )
