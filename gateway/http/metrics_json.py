"""The few figures of `/metrics` that people and small dashboards read, as one JSON object."""

from collections.abc import Iterable
from typing import Any

from gateway.http.parts import HttpParts
from protocol.wire.peers import Peer

_DECISIONS = "penstock_auth_decisions"
_LEASES = "penstock_auth_open_leases"


def wants_json(accept: str) -> bool:
    """Whether an `Accept` header asks for JSON and for no text that scrapers read."""
    types = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return "application/json" in types and not any(
        one in ("text/plain", "application/openmetrics-text") for one in types
    )


def metrics_json(parts: HttpParts) -> dict[str, Any]:
    """What this gateway has counted since its start, in the words of EasyDeL's server."""
    counted = _counted(parts)
    outcomes = counted["penstock_gateway_generations_total", "outcome"]
    tokens = counted["penstock_gateway_tokens_total", "kind"]
    spent_s = sum(counted["penstock_gateway_request_duration_seconds_sum", ""].values())
    completion_tokens = tokens.get("completion", 0.0)
    succeeded, failed = outcomes.get("finished", 0.0), outcomes.get("failed", 0.0)
    models = [name for name in parts.directory.models() if parts.directory.is_serving(name)]
    return {
        "uptime_seconds": round(parts.clock() - parts.started_s, 3),
        "total_requests": int(sum(outcomes.values())),
        "successful_requests": int(succeeded),
        "failed_requests": int(failed),
        "aborted_requests": int(outcomes.get("aborted", 0.0)),
        "total_tokens_generated": int(completion_tokens),
        # Of one request, on average: several run at a time.
        "average_tokens_per_second": round(completion_tokens / spent_s, 3) if spent_s else 0.0,
        "active_requests": parts.num_active(),
        "models_loaded": len(models),
        "models": sorted(models),
        "status": parts.readiness.look().status,
        "auth_stats": _auth_stats(parts.peers()),
    }


def _counted(parts: HttpParts) -> "_Sums":
    sums = _Sums()
    for family in parts.metrics.registry.collect():
        for sample in family.samples:
            sums.add(sample.name, sample.labels, sample.value)
    return sums


class _Sums:
    """Values of samples, added up by one of their labels."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        self._samples.setdefault(name, []).append((labels, value))

    def __getitem__(self, key: tuple[str, str]) -> dict[str, float]:
        name, label = key
        sums: dict[str, float] = {}
        for labels, value in self._samples.get(name, []):
            text = labels.get(label, "")
            sums[text] = sums.get(text, 0.0) + value
        return sums


def _auth_stats(peers: Iterable[Peer]) -> dict[str, Any]:
    """What the active auth worker counted, as far as it has told."""
    auth = [peer for peer in peers if peer.role == "auth" and peer.takes_work]
    active = max(auth, key=lambda peer: -1 if peer.auth is None else peer.auth.epoch, default=None)
    if active is None:
        return {"connected": False}
    decisions = {
        dict(sample.labels).get("outcome", ""): int(sample.value)
        for sample in active.metrics
        if sample.name.removesuffix("_total") == _DECISIONS
    }
    leases = [sample.value for sample in active.metrics if sample.name == _LEASES]
    return {
        "connected": True,
        "decisions": decisions,
        "open_leases": int(leases[0]) if leases else None,
    }
