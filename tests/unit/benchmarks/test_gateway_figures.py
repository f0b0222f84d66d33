"""The figures of `benchmarks.gateway` are of all gateways of a port together."""

from typing import Any, cast

import pytest

from benchmarks.gateway import PHASES, cpu_us, load, server_cpu_us
from benchmarks.gateway_peers.processes import Orders, Server


class FakeClient:
    """Gives a report in which the process of pid n has taken n ms for ten answers."""

    def give(self, **order: Any) -> dict[str, Any]:
        return {"cpu_s": [pid / 1000 for pid in order["pids"]], "answers": 10, "client_cpu_s": 0.0}


def test_gateways_of_one_port_are_one_process_in_the_figures() -> None:
    pids = {"gateway": 1, "gateway-1": 2, "auth": 4, "engine fake": 8, "engine calm-64": 16}
    server = Server("penstock", 1, pids, "", 0.0)
    report = load(cast(Orders, FakeClient()), server, PHASES[0], 1.0)
    spent = cpu_us(report, "answers")
    assert spent == pytest.approx({"gateway": 300, "auth": 400, "engine": 800, "client": 0})
    assert server_cpu_us("answers")(report) == pytest.approx(300)
