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


class Harness:
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
    harness = Harness()
    harness.engine.name(b"a")
    harness.outlet.versions["g"] = PROTOCOL_VERSION
    harness.reporter.report(is_idle=True)
    assert harness.outlet.sent == [("g", CachedBlocks(is_reset=True, added=(b"a",)))]
    harness.engine.name(b"b")
    harness.reporter.report(is_idle=True)
    assert harness.outlet.sent[1:] == [("g", CachedBlocks(added=(b"b",)))]
    harness.reporter.report(is_idle=True)
    assert len(harness.outlet.sent) == 2


def test_a_gateway_of_before_is_told_nothing() -> None:
    harness = Harness()
    harness.outlet.versions["old"] = OLDEST_VERSION
    harness.engine.name(b"a")
    harness.reporter.report(is_idle=True)
    assert harness.outlet.sent == []


def test_while_the_engine_works_changes_are_collected() -> None:
    harness = Harness()
    harness.outlet.versions["g"] = PROTOCOL_VERSION
    harness.reporter.report(is_idle=False)
    harness.outlet.sent.clear()
    for content in (b"a", b"b"):
        harness.engine.name(content)
        harness.reporter.report(is_idle=False)
    assert harness.outlet.sent == []
    harness.now += 1.0
    harness.reporter.report(is_idle=False)
    assert harness.outlet.sent == [("g", CachedBlocks(added=(b"a", b"b")))]


def test_long_reports_go_in_parts() -> None:
    harness = Harness()
    names = [bytes([number]) for number in range(5)]
    for content in names:
        harness.engine.name(content)
    harness.outlet.versions["g"] = PROTOCOL_VERSION
    original, cache_report.MAX_HASHES = cache_report.MAX_HASHES, 2
    try:
        harness.reporter.report(is_idle=True)
    finally:
        cache_report.MAX_HASHES = original
    parts = [message for _, message in harness.outlet.sent]
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
    harness = Harness()
    for kind, name in events:
        if kind == "name":
            harness.engine.name(name.encode())
        elif kind == "come":
            harness.outlet.versions[name] = PROTOCOL_VERSION
        elif kind == "go":
            harness.outlet.versions.pop(name, None)
            harness.reporter.forget_gateway(name)
            harness.known.pop(name, None)
        elif kind == "lose":
            harness.engine.pool.forget_all()
        elif kind == "clear":
            harness.engine.pool.forget_unused()
        else:
            harness.report()
    harness.report()
    for gateway_id in harness.outlet.versions:
        assert harness.known[gateway_id] == set(harness.engine.cached_blocks())
