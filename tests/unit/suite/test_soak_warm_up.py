"""The soak measures the growth of processes that have served some requests already."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, generate_latest

from engine_worker.core.metrics import EngineMetrics
from gateway.telemetry.worker_metrics import WorkerMetricsCollector
from protocol.runtime.metrics import Counter, MetricRegistry
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import Load, Role
from protocol.wire.peers import Peer
from tests.soak.report import Calm, Findings, render
from tests.soak.traffic import Ledger
from tests.soak.warm_up import ROUND, Look, WarmUp, read, warm_up
from toolparser_worker.metrics import ParserMetrics


def peer(role: Role, name: str, registry: MetricRegistry) -> Peer:
    return Peer(
        identity=name.encode(),
        role=role,
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        metrics=registry.message().samples,
    )


def test_the_gateway_s_metrics_say_who_has_served_how_many() -> None:
    engine = EngineMetrics(lambda: Load(num_blocks=2_000)).registry
    parsers = ParserMetrics(lambda: 0)
    (requests,) = (one for one in engine.metrics() if one.name == "penstock_engine_requests")
    assert isinstance(requests, Counter)
    requests.add(3, "length")
    requests.add(2, "stop")
    parsers.counts(("hermes", "")).num_streams = 4
    parsers.take_over()
    peers = [peer("engine", "e1", engine), peer("toolparser", "p1", parsers.registry)]
    registry = CollectorRegistry()
    registry.register(WorkerMetricsCollector(lambda: peers))
    text = generate_latest(registry).decode()
    look = read(text)
    assert look == Look({("engine", "e1"): 5, ("toolparser", "p1"): 4}, kv_blocks=2_000)
    assert (look.needs("engine"), look.needs("toolparser")) == (2_000, 1_000)


class Deployment:
    """Processes, each with its share of the requests.

    Args:
        shares: Process → of ten requests, how many it gets.
    """

    def __init__(self, shares: Mapping[tuple[str, str], float]) -> None:
        self.shares = shares
        # What chaos had them serve does not count.
        self.counts = dict.fromkeys(shares, 5_000.0)
        self.asked: list[int] = []
        self.kv_blocks = 0
        self.on_ask: Callable[[], None] = lambda: None

    async def ask(self, number: int) -> int:
        self.asked.append(number)
        for name, share in self.shares.items():
            self.counts[name] = self.counts.get(name, 0.0) + number * share / 10
        self.on_ask()
        return 1

    async def look(self) -> Look:
        return Look(dict(self.counts), self.kv_blocks)

    async def warm_up(self, at_least: int) -> WarmUp:
        return await warm_up(self.ask, self.look, {"engine": 2}, at_least)


async def test_all_requests_of_the_warm_up_are_asked() -> None:
    deployment = Deployment({("engine", "a"): 5, ("engine", "b"): 5})
    assert await deployment.warm_up(10_000) == WarmUp(10_000, 10_000 // ROUND, {})
    assert sum(deployment.asked) == 10_000


async def test_the_process_that_gets_least_has_served_its_own() -> None:
    deployment = Deployment({("engine", "a"): 9, ("engine", "b"): 1})
    assert (await deployment.warm_up(200)).num_requests == 10_000
    assert deployment.counts["engine", "b"] == 6_000


async def test_an_engine_has_touched_all_of_its_cache() -> None:
    deployment = Deployment({("engine", "a"): 5, ("engine", "b"): 5})
    deployment.kv_blocks = 3_000
    assert (await deployment.warm_up(200)).num_requests == 6_000


async def test_a_process_that_was_started_meanwhile_begins_with_nothing() -> None:
    deployment = Deployment({("engine", "a"): 5, ("engine", "b"): 5})

    def restart() -> None:
        if len(deployment.asked) == 5:  # just before it had served enough
            del deployment.counts["engine", "b"]
            deployment.shares = {("engine", "a"): 5, ("engine", "c"): 5}

    deployment.on_ask = restart
    assert await deployment.warm_up(200) == WarmUp(3_000, 15, {})
    assert deployment.counts["engine", "c"] == 1_000


async def test_a_process_that_gets_none_is_named_after_a_bounded_number() -> None:
    deployment = Deployment({("engine", "a"): 10, ("engine", "b"): 0})
    warm = await deployment.warm_up(200)
    assert warm.cold == {"engine": 1}
    assert warm.num_requests == 200 + 10 * 1_000 * 2


def test_what_went_wrong_in_the_calm_is_told_and_not_clean() -> None:
    def findings(num_failed: int = 0, of_warm_up: int = 0, *deaths: str) -> Findings:
        warm = WarmUp(3_000, of_warm_up, {"toolparser": 1})
        calm = Calm(20_000, num_failed, {"engine": 1.012}, warm, deaths)
        return Findings(1.0, Ledger(), [], calm=calm)

    assert findings().is_clean
    for unclean in (findings(1), findings(0, 1), findings(0, 0, "engine")):
        assert not unclean.is_clean
    page = render(findings(2, 1, "engine", "auth"))
    assert "| calm requests, of these failed | 20000, 2 |" in page
    assert "| requests before them to warm up, of these failed | 3000, 1 |" in page
    assert "| memory growth over the calm requests | engine +1.2 % |" in page
    assert "whose growth says nothing | 1 of role toolparser |" in page
    assert "| **processes that died in the calm** | engine, auth |" in page
