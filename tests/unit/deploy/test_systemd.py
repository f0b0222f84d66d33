"""The systemd units: settings that exist, time to drain, the order of a stop, and what they may
do."""

import importlib.util
from pathlib import Path

import pytest

from auth_worker.exit_codes import EXIT_LOST
from protocol.runtime.shared_settings import DRAIN_TIMEOUT_S
from tests.fakes.documented_settings import documented_settings

FOLDER = Path(__file__).parents[3] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
GATEWAY, AUTH = "penstock-gateway.service", "penstock-auth.service"
MODULES = {
    GATEWAY: "gateway",
    AUTH: "auth_worker",
    "penstock-engine@.service": "engine_worker",
    "penstock-toolparser@.service": "toolparser_worker",
}
Unit = dict[str, list[str]]


def read(path: Path) -> Unit:
    """Directive → values, in order; comments and sections left out."""
    found: Unit = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def environment(unit: Unit) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in unit["Environment"])


def test_there_is_a_unit_for_each_role() -> None:
    assert {path.name for path in UNITS} == set(MODULES)
    for path in UNITS:
        (command,) = read(path)["ExecStart"]
        module = command.removeprefix("/opt/penstock/bin/python -m ")
        assert module == MODULES[path.name]
        assert importlib.util.find_spec(f"{module}.__main__") is not None


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_every_setting_of_a_unit_exists(path: Path) -> None:
    given = set(environment(read(path)))
    assert {name for name in given if name.startswith("PENSTOCK_")} <= documented_settings()


def test_every_setting_of_the_example_exists() -> None:
    lines = (FOLDER / "penstock.env.example").read_text(encoding="utf-8").splitlines()
    given = {line.lstrip("#").split("=")[0] for line in lines if "=" in line and " " not in line}
    assert len(given) > 5
    assert given <= documented_settings()


def test_workers_dial_the_sockets_that_the_gateway_binds() -> None:
    bound = environment(read(FOLDER / GATEWAY))
    names = {name for name in bound if name.endswith("_ENDPOINT")}
    dialled = {
        name: value
        for path in UNITS
        if path.name != GATEWAY
        for name, value in environment(read(path)).items()
        if name.endswith("_ENDPOINT")
    }
    assert {name: bound[name] for name in names} == dialled
    assert len(dialled) == 3


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_waits_longer_than_the_drain_takes_and_starts_it_again(path: Path) -> None:
    unit = read(path)
    assert float(unit["TimeoutStopSec"][0]) >= DRAIN_TIMEOUT_S.default + 15
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit.get("RestartPreventExitStatus", []) == ([str(EXIT_LOST)] * (path.name == AUTH))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_gateway_stops_before_whom_its_requests_need(path: Path) -> None:
    """What is started earlier is stopped later."""
    unit = read(path)
    assert unit["PartOf"] == unit["WantedBy"] == ["penstock.target"]
    assert unit.get("Before", []) == [GATEWAY] * (path.name != GATEWAY)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_locked_down_and_has_limits(path: Path) -> None:
    unit = read(path)
    assert unit["User"] == ["penstock"]
    assert unit["CapabilityBoundingSet"] == [""]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert unit[name] == ["yes"], name
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["UMask"] == ["0077"]
    assert unit["MemoryMax"]
    assert unit["TasksMax"]
    # What it writes lies in folders that systemd opens for it.
    allowed = {
        "RuntimeDirectory": "/run",
        "StateDirectory": "/var/lib",
        "CacheDirectory": "/var/cache",
    }
    folders = {
        f"{root}/{folder}"
        for key, root in allowed.items()
        for line in unit.get(key, [])
        for folder in line.split()
    }
    for name, value in environment(unit).items():
        if name.endswith("_DIR"):
            assert value in folders, name
        elif name.endswith("_ENDPOINT"):
            assert str(Path(value.removeprefix("ipc://")).parent) in folders, name
