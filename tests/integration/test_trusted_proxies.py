"""Whose `X-Forwarded-For` is believed: nobody's, unless it is a proxy that was named."""

from pathlib import Path

import pytest

from protocol.wire.messages import Authorize
from tests.fakes.running_gateway import running_gateway


@pytest.mark.parametrize(
    ("trusted", "header", "address"),
    [
        ((), "203.0.113.7", "127.0.0.1"),
        (("10.0.0.0/8",), "203.0.113.7", "127.0.0.1"),
        (("127.0.0.1/32",), "203.0.113.7", "203.0.113.7"),
        # A client may have written what stands left of what our proxies did.
        (("127.0.0.0/8", "10.0.0.0/8"), "6.6.6.6, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
        (("127.0.0.1/32",), "2001:db8::7", "2001:db8::7"),
    ],
)
async def test_addresses_come_from_trusted_proxies_only(
    socket_dir: Path, trusted: tuple[str, ...], header: str, address: str
) -> None:
    async with running_gateway(socket_dir, trusted_proxies=trusted) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        gateway.client.headers["X-Forwarded-For"] = header
        assert (await gateway.chat()).status_code == 200
        assert [one.address for one in auth.of(Authorize)] == [address]


async def test_a_proxy_on_a_unix_socket_is_one_of_this_machine(socket_dir: Path) -> None:
    path = socket_dir / "http"
    async with running_gateway(socket_dir, uds=path, trusted_proxies=("127.0.0.1/32",)) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        assert (await gateway.chat()).status_code == 200
        gateway.client.headers["X-Forwarded-For"] = "203.0.113.7"
        assert (await gateway.chat()).status_code == 200
        assert [one.address for one in auth.of(Authorize)] == ["127.0.0.1", "203.0.113.7"]


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_an_ipv4_proxy_of_a_socket_for_both_is_known_by_its_address(socket_dir: Path) -> None:
    changes = {"host": "::", "trusted_proxies": ("127.0.0.0/8",)}
    async with running_gateway(socket_dir, **changes) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        gateway.client.headers["Authorization"] = "Bearer a-key"
        assert (await gateway.chat()).status_code == 200
        gateway.client.headers["X-Forwarded-For"] = "203.0.113.7"
        assert (await gateway.chat()).status_code == 200
        assert [one.address for one in auth.of(Authorize)] == ["127.0.0.1", "203.0.113.7"]
