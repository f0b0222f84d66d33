"""Deals test files out to the processes that run tests: what shares something goes together."""

from functools import cached_property
from typing import Any

from xdist.scheduler import LoadFileScheduling

from tests.fakes.order import is_small_unit

TOGETHER = {
    # Most of these read the sources of all packages, each process for itself.
    "tests/contract/": "tests/contract",
    # Servers of their own, many of them killed: as long as all that share one.
    "tests/e2e/test_recurrent_and_windowed_models.py": "servers that die",
    "tests/e2e/test_background_survives.py": "servers that die",
    "tests/e2e/test_batches.py": "servers that die",
    "tests/e2e/test_new_weights.py": "servers that die",
    "tests/e2e/test_soak_in_short.py": "servers that die",
    "tests/e2e/test_the_supervisor_is_killed.py": "servers that die",
    "tests/e2e/test_when_something_dies.py": "servers that die",
    # One deployment serves most of these, and one cache of compiled programs is warm for the
    # others.
    "tests/e2e/": "tests/e2e",
    # The runners of tests/unit/engine_worker/conftest.py, compiled once.
    "tests/unit/engine_worker/compute/runner/test_cached_prefix_bits.py": "shared runners",
    "tests/unit/engine_worker/compute/runner/test_deterministic_runner.py": "shared runners",
    "tests/unit/engine_worker/compute/runner/test_full_sampler.py": "shared runners",
    "tests/unit/engine_worker/compute/runner/test_score_program.py": "shared runners",
    "tests/unit/engine_worker/core/test_deterministic_engine.py": "shared runners",
    "tests/unit/engine_worker/core/test_sampling_parameters.py": "shared runners",
    "tests/unit/engine_worker/core/test_scores_by_batch.py": "shared runners",
    "tests/unit/engine_worker/core/test_speculating_engine.py": "shared runners",
    "tests/unit/engine_worker/core/test_thought_limits.py": "shared runners",
    "tests/unit/engine_worker/core/test_wanted_logprobs.py": "shared runners",
}
"""Beginnings of paths, and the name of their group; the first that fits."""


def group_of(nodeid: str) -> str:
    """The group whose tests run in one process."""
    path = nodeid.split("::", 1)[0]
    for start, group in TOGETHER.items():
        if path.startswith(start):
            return group
    return nodeid.split("[", 1)[0] if is_small_unit(nodeid) else path


class DealtTogether(LoadFileScheduling):  # type: ignore[misc]
    """As `--dist loadfile`, but by `group_of`; in the order in which tests were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        """As inherited, which looks for each test in the list of all."""
        scope, work_unit = self.workqueue.popitem(last=False)
        self.assigned_work.setdefault(node, {})[scope] = work_unit
        left = [nodeid for nodeid, is_done in work_unit.items() if not is_done]
        node.send_runtest_some([self._places[nodeid] for nodeid in left])

    @cached_property
    def _places(self) -> dict[str, int]:
        """Of tests in what every process has collected; asked for once all have."""
        return {nodeid: place for place, nodeid in enumerate(self.collection or ())}
