"""New weights under one name while old ones serve: docs/deployment.md's recipe under load."""

import inspect
import time
from collections.abc import Sequence

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.everyday import expect_nothing_left
from tests.e2e_docker.load import StreamingLoad, learn
from tests.e2e_docker.project import Project
from tests.e2e_docker.upgrade import roll
from tests.fakes.other_weights import make_other_weights

# Engines must give the same text whoever runs beside whom, since the load compares texts.
_SETTINGS = {"PENSTOCK_DETERMINISTIC": "true", "PENSTOCK_DRAIN_TIMEOUT_S": "20"}
_FOLDER = "trained-on"
_MAKE_NEW_WEIGHTS = f"""
{inspect.getsource(make_other_weights)}
make_other_weights("/models/{_FOLDER}")
"""


def new_weights(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Two engines are replaced by two with other weights; no request fails or is refused."""
    with Project(engine, compose, settings=_SETTINGS) as project:
        project.up(engine_worker=2)
        project.wait_ready(engine=2, auth=1, toolparser=1)
        base, key = project.gateway_urls()[0], project.new_key()
        old_texts = learn(base, key)
        _make_new_weights(project)
        other_texts: set[tuple[str, str]] = set()

        def note(prompt: str, text: str) -> bool:
            """Whose text it is shows when the new engines are asked in peace."""
            if text != old_texts[prompt]:
                other_texts.add((prompt, text))
            return True

        with StreamingLoad([base], key, old_texts, is_right=note) as load:
            load.wait_for(8)
            assert not other_texts
            seconds = _roll(project)
            load.wait_for(16)
        tally = load.tally
        say(
            f"  new weights rolled out under load in {seconds:.1f} s: {tally.num_right} streams "
            f"right, {tally.num_refused} refused with 503, {len(tally.failures)} failed"
        )
        assert not tally.failures, tally.failures[:3]
        assert not tally.num_refused
        texts = learn(base, key)
        assert texts != old_texts
        assert other_texts
        assert other_texts <= set(texts.items()), "a stream mixed old and new weights"
        _up_again_replaces_nothing(project)
    expect_nothing_left(project)


def _make_new_weights(project: Project) -> None:
    project.engine.docker(
        "run", "--rm", "--user", "0", "--network", "none",
        "--volume", f"{project.name}_models:/models", "--entrypoint", "python",
        "penstock-engine", "-c", _MAKE_NEW_WEIGHTS,
    )  # fmt: skip


def _roll(project: Project) -> float:
    """The recipe: new engines beside the old ones, and the old ones stop once the new are healthy.

    Returns:
        The seconds until the old engines were gone.
    """
    old = project.containers("engine_worker")
    begin = time.monotonic()
    project.settings["PENSTOCK_MODEL_PATH"] = _FOLDER
    project.compose("up", "weights")
    roll(project, "engine_worker")
    new = project.containers("engine_worker")
    assert len(new) == len(old)
    assert not set(new) & set(old)
    return time.monotonic() - begin


def _up_again_replaces_nothing(project: Project) -> None:
    before = project.containers("engine_worker")
    project.compose("up", "-d", "--scale", "engine_worker=2")
    assert project.containers("engine_worker") == before
