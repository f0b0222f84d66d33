"""Connections that say nothing: counted, made nothing of, and ended when their time is over."""

import asyncio
import logging
import ssl
from typing import Any

import pytest
from uvicorn.server import ServerState

from gateway.http.connections.arrival import ARRIVAL_TIMEOUT_S, Arrivals
from gateway.http.connections.limits import ConnectionLimits
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.refusals import Refusals
from tests.fakes.virtual_time import VirtualTimeLoop

LOOP = VirtualTimeLoop


class Transport(asyncio.Transport):
    """One whose end its protocol hears at once."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        super().__init__({"peername": (address, 1)})
        self.protocol: Any = None
        self.ended_at: float | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def abort(self) -> None:
        self.ended_at = asyncio.get_running_loop().time()
        self.protocol.connection_lost(None)


class Http(asyncio.Protocol):
    """What takes over."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


class House:
    """Arrivals, and the connections that have come."""

    def __init__(
        self,
        max_connections: int = 10,
        *,
        max_per_address: int = 0,
        proxies: tuple[str, ...] = (),
        tls: bool = False,
        refusals: Refusals | None = None,
    ) -> None:
        self.state = ServerState()
        self.limits = ConnectionLimits(max_connections, max_per_address, proxies)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.arrivals = Arrivals(self.limits, (lambda: context) if tls else None, Http, refusals)

    def come(self, address: str = "192.0.2.1") -> Transport:
        transport = Transport(address)
        transport.protocol = self.arrivals(server_state=self.state, app_state={})
        transport.protocol.connection_made(transport)
        return transport


async def test_http_takes_over_with_the_first_byte_and_not_before() -> None:
    house = House()
    talks, silent = house.come(), house.come()
    assert len(house.limits) == 2
    assert len(house.state.connections) == 2
    talks.protocol.data_received(b"GET")
    assert isinstance(talks.protocol, Http)
    assert talks.protocol.received == b"GET"
    assert talks.protocol.options == {"server_state": house.state, "app_state": {}}
    assert not isinstance(silent.protocol, Http)
    # From there on HTTP's protocol counts by itself.
    assert len(house.limits) == 1
    assert len(house.state.connections) == 1


async def test_each_silent_connection_ends_when_its_own_time_is_over() -> None:
    house = House()
    first = house.come()
    await asyncio.sleep(ARRIVAL_TIMEOUT_S / 2)
    second, heard_of = house.come(), house.come()
    heard_of.protocol.data_received(b"G")
    await asyncio.sleep(ARRIVAL_TIMEOUT_S)
    third = house.come()
    await asyncio.sleep(2 * ARRIVAL_TIMEOUT_S)
    assert [first.ended_at, second.ended_at, third.ended_at, heard_of.ended_at] == [
        ARRIVAL_TIMEOUT_S,
        1.5 * ARRIVAL_TIMEOUT_S,
        2.5 * ARRIVAL_TIMEOUT_S,
        None,
    ]
    assert len(house.limits) == 0
    assert not house.state.connections


async def test_the_oldest_silent_connection_makes_room() -> None:
    house = House(max_connections=1)
    old, new = house.come(), house.come()
    assert (old.ended_at, new.ended_at) == (0.0, None)
    assert len(house.limits) == 1


async def test_who_comes_beyond_the_bound_is_told_by_http() -> None:
    house = House(max_connections=0)
    assert isinstance(house.come().protocol, Http)


async def test_over_tls_it_is_told_nothing_but_the_log_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.access")
    refusals = Refusals(AccessLog(is_on=True), Metrics())
    assert House(max_connections=0, tls=True, refusals=refusals).come().ended_at == 0.0
    (line,) = (record.__dict__["fields"] for record in caplog.records)
    assert (line["address"], line["status"]) == ("192.0.2.1", 0)
    assert line["error_code"] == "overloaded"


async def test_a_client_that_leaves_and_a_server_that_stops_leave_nothing_behind() -> None:
    house = House()
    house.come().protocol.connection_lost(None)
    stopped = house.come()
    for one in list(house.state.connections):
        one.shutdown()
    assert stopped.ended_at == 0.0
    assert len(house.limits) == 0
    assert not house.state.connections


async def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    house = House(max_per_address=2)
    first = house.come("2001:db8::1")
    others = [house.come("2001:db8::2"), house.come("2001:db8::ffff:3"), house.come("2001:db9::1")]
    assert first.ended_at is not None
    assert [one.ended_at for one in others] == [None] * 3
    assert len(house.limits) == 3
    for one in others:
        one.abort()
    assert len(house.limits) == 0


async def test_a_socket_for_ipv6_and_ipv4_knows_proxies_by_their_ipv4_address() -> None:
    house = House(max_per_address=1, proxies=("192.0.2.0/24",))
    proxied = [house.come("::ffff:192.0.2.7"), house.come("::ffff:192.0.2.7")]
    assert [one.ended_at for one in proxied] == [None] * 2
    assert proxied[0].protocol.address == "192.0.2.7"
