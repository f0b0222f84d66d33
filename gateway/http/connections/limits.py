"""How many connections clients may hold open: in all and by address, idle ones closed first."""

import resource
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Protocol

from protocol.runtime.addresses import network_of

RESERVED_DESCRIPTORS = 256
"""For the outbox, the workers' sockets, logs and tools, whatever clients do."""
MAX_CONNECTIONS = 200_000


class Connection(Protocol):
    """One connection of a client."""

    address: str

    def close_idle(self) -> None:
        """Close it: no request of it is under way."""
        ...


class ConnectionLimits:
    """Counts connections and makes room.

    A connection without a request under way is closed when a newcomer needs its place: the oldest
    one of the same address where that address has too many, the oldest of all otherwise. Where
    every connection is busy, the newcomer is refused. Of IPv6 one client has many addresses, so
    `network_of` says what counts as one.

    Args:
        max_connections: In all.
        max_per_address: From one address; 0 has no bound of its own.
        proxies: Networks whose connections are those of many clients: no bound by address.
    """

    def __init__(
        self, max_connections: int, max_per_address: int = 0, proxies: Iterable[str] = ()
    ) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._proxies = tuple(map(ip_network, proxies))
        # Each with what counts as its address.
        self._idle: OrderedDict[Connection, str] = OrderedDict()
        self._by_address: dict[str, int] = {}
        self._num_open = 0

    def __len__(self) -> int:
        return self._num_open

    def admit(self, connection: Connection) -> bool:
        """A client has come; whether there is a place, made by closing an idle one if need be."""
        address = network_of(connection.address)
        bound = self._max_per_address
        has_enough = bound and self._by_address.get(address, 0) >= bound
        if has_enough and not self._is_proxy(connection.address) and not self._evict(address):
            return False
        if self._num_open >= self._max_connections and not self._evict():
            return False
        self._num_open += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1
        self._idle[connection] = address
        return True

    def on_busy(self, connection: Connection) -> None:
        """A request has come on an admitted connection."""
        self._idle.pop(connection, None)

    def on_idle(self, connection: Connection) -> None:
        """Its last request was answered."""
        self._idle[connection] = network_of(connection.address)

    def leave(self, connection: Connection) -> None:
        """An admitted connection is gone."""
        self._idle.pop(connection, None)
        self._num_open -= 1
        address = network_of(connection.address)
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)

    def _evict(self, address: str | None = None) -> bool:
        for connection, theirs in self._idle.items():
            if address is None or theirs == address:
                connection.close_idle()  # which leaves at once
                return True
        return False


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it may; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft


def default_max_connections(num_descriptors: int) -> int:
    """What is left for clients."""
    return max(16, min(MAX_CONNECTIONS, num_descriptors - RESERVED_DESCRIPTORS))
