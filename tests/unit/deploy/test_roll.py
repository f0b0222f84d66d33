"""deploy/roll.sh with a docker that only keeps books: who is started, drained and left alone."""

import subprocess
from pathlib import Path

import pytest

ROLL = Path(__file__).parents[3] / "deploy" / "roll.sh"
FAKE_DOCKER = """#!/usr/bin/env bash
# A container is a file of $STATE; every call is a line of $STATE.log.
echo "$*" >> "$STATE.log"
case "$*" in
  "compose ps "*) ls "$STATE" ;;
  "compose up -d --no-recreate --scale engine_worker=4 engine_worker")
    touch "$STATE/new-1" "$STATE/new-2"; [ "$HEALTH" != "port is taken" ] ;;
  "inspect -f {{.State.Health.Status}}"*) echo "$HEALTH" ;;
  "inspect -f {{.State.ExitCode}}"*) echo 0 ;;
  "logs"*) echo "the last line" ;;
  "stop --time 45"*) ;;
  "rm --force"*) cd "$STATE" && rm "${@:3}" ;;
  "rm "*) rm "$STATE/$2" ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


class Roll:
    """One run of the script with two containers of a service."""

    def __init__(self, folder: Path, service: str, health: str, num_old: int = 2) -> None:
        state = folder / "state"
        state.mkdir()
        for number in range(num_old):
            (state / f"old-{number + 1}").touch()
        docker = folder / "bin" / "docker"
        docker.parent.mkdir()
        docker.write_text(FAKE_DOCKER, encoding="utf-8")
        docker.chmod(0o755)
        self.done = subprocess.run(
            [ROLL, service],
            env={
                "PATH": f"{docker.parent}:/usr/bin:/bin",
                "STATE": str(state),
                "HEALTH": health,
                "ROLL_TIMEOUT_S": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.left = sorted(path.name for path in state.iterdir())
        log = folder / "state.log"
        self.calls = log.read_text().splitlines() if log.exists() else []


def test_old_containers_are_drained_once_the_new_ones_serve(tmp_path: Path) -> None:
    roll = Roll(tmp_path, "engine_worker", "healthy")
    assert (roll.done.returncode, roll.done.stderr) == (0, "")
    assert roll.left == ["new-1", "new-2"]
    asked = [call for call in roll.calls if "Health" in call]
    stopped = [call for call in roll.calls if call.startswith("stop")]
    assert [call.split()[-1] for call in asked] == ["new-1", "new-2"]
    assert [call.split()[-1] for call in stopped] == ["old-1", "old-2"]
    assert roll.calls.index(asked[-1]) < roll.calls.index(stopped[0])


def test_new_containers_that_do_not_serve_go_and_the_old_ones_stay(tmp_path: Path) -> None:
    roll = Roll(tmp_path, "engine_worker", "starting")
    assert roll.done.returncode == 1
    assert "the old ones stay" in roll.done.stderr
    assert "the last line" in roll.done.stderr
    assert roll.left == ["old-1", "old-2"]
    assert not [call for call in roll.calls if call.startswith("stop")]


def test_new_containers_that_cannot_start_go_and_the_old_ones_stay(tmp_path: Path) -> None:
    roll = Roll(tmp_path, "engine_worker", "port is taken")
    assert roll.done.returncode == 1
    assert "could not start; the old ones stay" in roll.done.stderr
    assert roll.left == ["old-1", "old-2"]


@pytest.mark.parametrize(
    ("service", "num_old", "words"),
    [("auth_worker", 1, "one auth worker"), ("engine_worker", 0, "No container of engine_worker")],
)
def test_what_cannot_be_rolled_is_said_and_left_alone(
    tmp_path: Path, service: str, num_old: int, words: str
) -> None:
    roll = Roll(tmp_path, service, "healthy", num_old)
    assert roll.done.returncode == 1
    assert words in roll.done.stderr
    assert not [call for call in roll.calls if " up " in call]
