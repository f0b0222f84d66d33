"""What gateways learn of an engine's cached blocks adds up to what is cached."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.scheduling.block_pool import BlockPool, ContentChanges
from engine_worker.serving import cache_report
from engine_worker.serving.cache_report import CacheReporter
from protocol.version import OLDEST_VERSION, PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import CachedBlocks, Message


class FakeOutlet:
    def __init__(self) -> None:
        self.versions: dict[str, ProtocolVersion] = {}
        self.sent: list[tuple[str, CachedBlocks]] = []

    def send(self, gateway_id: str, message: Message) -> None:
        assert isinstance(message, CachedBlocks)
        self.sent.append((gateway_id, message))

    def gateway_ids(self) -> tuple[str, ...]:
        return tuple(self.versions)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        return self.versions[gateway_id]


class Engine:
    """A pool whose blocks are named and taken away by the test."""

    def __init__(self) -> None:
        self.pool = BlockPool(6, 1)

    def name(self, content: bytes) -> None:
        block_ids = self.pool.allocate(1)
        assert block_ids is not None
        self.pool.register(block_ids[0], content)
        self.pool.release(block_ids)

    def cached_blocks(self) -> tuple[bytes, ...]:
        return self.pool.contents()

    def take_cache_changes(self) -> ContentChanges | None:
        return self.pool.take_changes()


class House:
    def __init__(self) -> None:
        self.now = 0.0
        self.engine = Engine()
        self.outlet = FakeOutlet()
        self.reporter = CacheReporter(self.engine, self.outlet, lambda: self.now)
        self.known: dict[str, set[bytes]] = {}

    def report(self, *, is_idle: bool = True) -> None:
        self.reporter.report(is_idle=is_idle)
        for gateway_id, message in self.outlet.sent:
            known = self.known.setdefault(gateway_id, set())
            if message.is_reset:
                known.clear()
            known.difference_update(message.removed)
            known.update(message.added)
        self.outlet.sent.clear()


def test_a_newcomer_learns_everything_and_then_the_changes() -> None:
    house = House()
    house.engine.name(b"a")
    house.outlet.versions["g"] = PROTOCOL_VERSION
    house.reporter.report(is_idle=True)
    assert house.outlet.sent == [("g", CachedBlocks(is_reset=True, added=(b"a",)))]
    house.engine.name(b"b")
    house.reporter.report(is_idle=True)
    assert house.outlet.sent[1:] == [("g", CachedBlocks(added=(b"b",)))]
    house.reporter.report(is_idle=True)
    assert len(house.outlet.sent) == 2


def test_a_gateway_of_before_is_told_nothing() -> None:
    house = House()
    house.outlet.versions["old"] = OLDEST_VERSION
    house.engine.name(b"a")
    house.reporter.report(is_idle=True)
    assert house.outlet.sent == []


def test_while_the_engine_works_changes_are_collected() -> None:
    house = House()
    house.outlet.versions["g"] = PROTOCOL_VERSION
    house.reporter.report(is_idle=False)
    house.outlet.sent.clear()
    for content in (b"a", b"b"):
        house.engine.name(content)
        house.reporter.report(is_idle=False)
    assert house.outlet.sent == []
    house.now += 1.0
    house.reporter.report(is_idle=False)
    assert house.outlet.sent == [("g", CachedBlocks(added=(b"a", b"b")))]


def test_long_reports_go_in_parts() -> None:
    house = House()
    names = [bytes([number]) for number in range(5)]
    for content in names:
        house.engine.name(content)
    house.outlet.versions["g"] = PROTOCOL_VERSION
    original, cache_report.MAX_HASHES = cache_report.MAX_HASHES, 2
    try:
        house.reporter.report(is_idle=True)
    finally:
        cache_report.MAX_HASHES = original
    parts = [message for _, message in house.outlet.sent]
    assert [part.is_reset for part in parts] == [True, False, False]
    assert [name for part in parts for name in part.added] == names


EVENTS = st.lists(
    st.one_of(
        st.integers(0, 9).map(lambda number: ("name", str(number))),
        st.sampled_from(["a", "b"]).map(lambda gateway_id: ("come", gateway_id)),
        st.sampled_from(["a", "b"]).map(lambda gateway_id: ("go", gateway_id)),
        st.just(("report", "")),
        st.just(("lose", "")),
        st.just(("clear", "")),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(EVENTS)
def test_every_gateway_knows_exactly_what_is_cached(events: list[tuple[str, str]]) -> None:
    house = House()
    for kind, name in events:
        if kind == "name":
            house.engine.name(name.encode())
        elif kind == "come":
            house.outlet.versions[name] = PROTOCOL_VERSION
        elif kind == "go":
            house.outlet.versions.pop(name, None)
            house.reporter.forget_gateway(name)
            house.known.pop(name, None)
        elif kind == "lose":
            house.engine.pool.forget_all()
        elif kind == "clear":
            house.engine.pool.forget_unused()
        else:
            house.report()
    house.report()
    for gateway_id in house.outlet.versions:
        assert house.known[gateway_id] == set(house.engine.cached_blocks())
