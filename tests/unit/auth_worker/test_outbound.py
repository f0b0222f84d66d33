"""What this process may ask of other servers: public addresses or listed ones, and no more of
them."""

import ipaddress
import socket
import threading
from typing import Any

import pytest

from auth_worker.errors import OutboundError
from auth_worker.outbound.exchange import Exchanger
from auth_worker.outbound.lookup import Lookup
from auth_worker.outbound.targets import TargetGuard, target_of
from auth_worker.principals.key_rules import networks_of
from protocol.runtime.addresses import is_internal
from tests.fakes.http_target import http_target

NAMED = "https://hooks.example/"
LOOPBACK = networks_of(("127.0.0.0/8",))


def resolver(*addresses: str) -> Any:
    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses
        ]

    return resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:0001::",
        "2002:c0a8:0101::1",
        "::127.0.0.1",
        "fec0::1",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:ffff::1",
        "::ffff:0:169.254.169.254",
    ],
)
def test_addresses_inside_are_known_in_every_spelling(address: str) -> None:
    assert is_internal(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_not_inside(address: str) -> None:
    assert not is_internal(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x.example/",
        "file:///etc/passwd",
        "gopher://x.example/",
        "x.example/path",
        "https://",
        "https://user@x.example/",
        "https://user:secret@x.example/",
        "https://x.example/#a",
        "https://x.example:99999/",
        "https://x.example/a b",
        "https://x.example/\r\nHost: y",
        "https://é.example/",
        "https://[::1/",
        "https://x.example/" + "a" * 2048,
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(OutboundError):
        target_of(url)


def test_a_name_that_leads_inside_as_well_as_outside_is_refused_whole() -> None:
    target = target_of("https://x.example/hook?a=1")
    assert (target.host, target.port, target.path) == ("x.example", 443, "/hook?a=1")
    assert TargetGuard(resolve=resolver("8.8.8.8")).addresses(target, 5.0) == ["8.8.8.8"]
    for order in (("8.8.8.8", "10.0.0.1"), ("10.0.0.1", "8.8.8.8")):
        with pytest.raises(OutboundError, match=r"10\.0\.0\.1"):
            TargetGuard(resolve=resolver(*order)).addresses(target, 5.0)
    listed = TargetGuard(networks_of(("10.0.0.0/24",)), resolver("8.8.8.8", "10.0.0.1"))
    assert listed.addresses(target, 5.0) == ["8.8.8.8", "10.0.0.1"]


def test_plain_http_is_for_listed_addresses_only() -> None:
    target = target_of("http://x.example/")
    with pytest.raises(OutboundError, match="plain http"):
        TargetGuard(resolve=resolver("8.8.8.8")).addresses(target, 5.0)
    assert TargetGuard(networks_of(("8.8.8.8",)), resolver("8.8.8.8")).addresses(target, 5.0)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]", "localhost"]
)
def test_no_spelling_of_the_loopback_address_is_reached(host: str) -> None:
    with http_target() as victim:
        port = victim.url.rpartition(":")[2]
        for scheme in ("http", "https"):
            with pytest.raises(OutboundError):
                exchange(Exchanger(TargetGuard()), f"{scheme}://{host}:{port}/")
        assert victim.received == []


def exchange(exchanger: Exchanger, url: str, **options: Any) -> Any:
    arguments = {"timeout_s": 5.0, "max_bytes": 1000, **options}
    return exchanger.exchange("POST", url, body=b'{"a":1}', **arguments)


def test_a_listed_target_gets_the_request_at_the_address_that_was_checked() -> None:
    asked = []

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        # The second answer would lead elsewhere, as a rebinding name's does.
        address = "127.0.0.1" if len(asked) == 1 else "192.0.2.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    with http_target() as target:
        port = target.url.rpartition(":")[2]
        exchanger = Exchanger(TargetGuard(LOOPBACK, resolve))
        answer = exchange(exchanger, f"http://hooks.example:{port}/x?y=1", headers={"X-Y": "z"})
        assert (answer.status, answer.body) == (200, b"{}")
        (received,) = target.received
    assert asked == ["hooks.example"]
    assert (received.method, received.path, received.body) == ("POST", "/x?y=1", b'{"a":1}')
    assert received.headers["host"] == f"hooks.example:{port}"
    assert received.headers["x-y"] == "z"


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with http_target() as victim, http_target() as target:
        target.answer = lambda received: (302, b"", {"Location": victim.url})
        assert exchange(Exchanger(TargetGuard(LOOPBACK)), target.url).status == 302
        assert victim.received == []


def test_an_answer_over_the_bound_is_refused() -> None:
    with http_target() as target:
        target.answer = lambda received: (200, b"x" * 1001, {})
        with pytest.raises(OutboundError, match="1000 bytes"):
            exchange(Exchanger(TargetGuard(LOOPBACK)), target.url)


@pytest.mark.parametrize("drip", [b"", b"H"], ids=["says nothing", "one byte at a time"])
def test_a_target_that_hangs_costs_no_more_than_the_deadline(drip: bytes) -> None:
    """The clock runs ahead by itself, so that a wait for each byte ends at the deadline of all."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.02
        return now[0]

    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while not stop.wait(0.001):
                    if drip:
                        try:
                            connection.send(drip)
                        except OSError:
                            return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(OutboundError, match="within 1 s"):
                url = f"http://127.0.0.1:{server.getsockname()[1]}/"
                exchange(Exchanger(TargetGuard(LOOPBACK), clock=clock), url, timeout_s=1.0)
        finally:
            stop.set()
            thread.join()


def test_what_answers_no_http_or_nothing_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        with pytest.raises(OutboundError):
            exchange(Exchanger(TargetGuard(LOOPBACK)), f"http://127.0.0.1:{port}/")
        thread.join()
    with pytest.raises(OutboundError, match="refused"):
        exchange(Exchanger(TargetGuard(LOOPBACK)), f"http://127.0.0.1:{port}/")


def test_a_certificate_of_nobody_known_is_refused() -> None:
    with http_target() as target:
        url = target.url.replace("http://", "https://")
        with pytest.raises(OutboundError):
            exchange(Exchanger(TargetGuard(LOOPBACK)), url)


def test_a_name_service_that_says_nothing_holds_an_exchange_until_its_deadline_only() -> None:
    answer, ended = threading.Event(), threading.Event()

    def silent(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        answer.wait()
        ended.set()
        return []

    exchanger = Exchanger(TargetGuard(LOOPBACK, silent))
    try:
        with pytest.raises(OutboundError, match="the name service did not say within"):
            exchanger.exchange("POST", NAMED, timeout_s=0.01, max_bytes=10)
        assert not ended.is_set()
    finally:
        answer.set()
    assert ended.wait(60)


def test_questions_that_nobody_answers_do_not_pile_up_as_threads() -> None:
    answer = threading.Event()
    num_asked = 0

    def silent(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        nonlocal num_asked
        num_asked += 1
        answer.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    lookup = Lookup(silent, max_lookups=2)
    try:
        for _ in range(2):
            with pytest.raises(OutboundError, match="did not say"):
                lookup("hooks.example", 443, 0.01)
        with pytest.raises(OutboundError, match="too many questions unanswered"):
            lookup("hooks.example", 443, 0.01)
        assert num_asked == 2
    finally:
        answer.set()
    assert lookup("hooks.example", 443, 10)[0][4] == ("8.8.8.8", 443)


def test_a_name_that_nobody_knows_is_said_at_once() -> None:
    def unknown(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(OutboundError, match="is not known"):
        TargetGuard(resolve=unknown).addresses(target_of(NAMED), 5.0)


def test_a_lookup_for_which_no_thread_can_be_had_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = Lookup(resolver("192.0.2.1"), max_lookups=1)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="new thread"):
                lookup("hooks.example", 443, 0.0)
    assert lookup("hooks.example", 443, 10.0)
