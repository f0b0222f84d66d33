"""The supervisor with real child processes: restart, giving up, order and completeness of the
end."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import supervisor
from penstock.config import ModelChoice, ServeSettings, build_settings
from penstock.errors import CommandError, UsageError
from penstock.restart_policy import MAX_DELAY_S
from penstock.supervisor import (
    ProcessSpec,
    Supervisor,
    common_environment,
    make_run_dir,
    process_specs,
)

CHILD = "tests.fakes.child_process"


class Clock:
    """Real time plus what the test adds, so that back-off needs no waiting."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset


def child(tmp_path: Path, name: str, behaviour: str, stop_order: int = 1) -> ProcessSpec:
    environment = {"FAKE_CHILD": behaviour, "FAKE_CHILD_FILE": str(tmp_path / name)}
    return ProcessSpec(name, CHILD, environment, stop_order)


def supervise(
    *specs: ProcessSpec, run_dir: Path, clock: Clock | None = None, drain_timeout_s: float = 20.0
) -> Supervisor:
    run_dir.mkdir(exist_ok=True)
    return Supervisor(
        specs,
        dict(os.environ),
        run_dir,
        drain_timeout_s=drain_timeout_s,
        clock=clock or Clock(),
    )


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split() if path.exists() else []


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_leaving_ends_every_process_and_removes_the_sockets(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with supervise(child(tmp_path, "a", "run"), run_dir=run_dir):
        eventually(lambda: len(lines(tmp_path / "a")) == 1)
    pid, last = lines(tmp_path / "a")
    assert last == "stopped"
    assert is_gone(int(pid))
    assert not run_dir.exists()


def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    clock = Clock()
    with supervise(child(tmp_path, "a", "run"), run_dir=tmp_path / "run", clock=clock) as harness:
        eventually(lambda: len(lines(tmp_path / "a")) == 1)
        os.kill(int(lines(tmp_path / "a")[0]), signal.SIGKILL)
        eventually(lambda: not harness.children[0].is_alive)
        harness.poll()
        clock.offset += 10
        harness.poll()
        eventually(lambda: len(lines(tmp_path / "a")) == 2)


@pytest.mark.parametrize("code", [1, 2, 78])
def test_a_process_that_cannot_start_stops_the_start(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(CommandError, match=rf"a could not start \(exit code {code}\)"),
        supervise(child(tmp_path, "a", f"exit {code}"), run_dir=tmp_path / "run") as harness,
    ):
        eventually(lambda: not harness.children[0].is_alive)
        harness.poll()


def die(harness: Supervisor, clock: Clock, num_deaths: int = 1) -> None:
    """Let the only child die so often, each time started again when it is due."""
    for _ in range(num_deaths):
        eventually(lambda: not harness.children[0].is_alive)
        harness.poll()
        clock.offset += MAX_DELAY_S
        harness.poll()


@pytest.mark.parametrize("code", [1, 3, 75])
def test_once_the_deployment_was_ready_no_crash_makes_it_give_a_process_up(
    tmp_path: Path, code: int
) -> None:
    clock = Clock()
    spec = child(tmp_path, "a", f"exit {code}")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock) as harness:
        harness.was_ready = True
        die(harness, clock, 9)
        assert not harness.children[0].given_up
        eventually(lambda: len(lines(tmp_path / "a")) == 10)


@pytest.mark.parametrize("code", [3, 75])
def test_what_may_pass_does_not_end_the_first_start(tmp_path: Path, code: int) -> None:
    clock = Clock()
    spec = child(tmp_path, "a", f"exit {code}")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock) as harness:
        die(harness, clock, 7)
        assert not harness.children[0].given_up


def test_a_process_whose_cause_has_passed_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    room = tmp_path / "room"
    spec = child(tmp_path, "a", f"need {room}")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock) as harness:
        harness.was_ready = True
        die(harness, clock, 7)
        eventually(lambda: not harness.children[0].is_alive)
        harness.poll()
        room.touch()
        clock.offset += MAX_DELAY_S
        harness.poll()
        eventually(lambda: "here" in lines(tmp_path / "a"))
        assert harness.children[0].is_alive
        clock.offset += 2 * MAX_DELAY_S
        harness.poll()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[0] == "a died (exit code 75), starting again in 0.25 s"
    assert all("still down" in line for line in said[1:-1])
    # Seven pauses of half a minute each.
    assert 2 <= len(said[1:-1]) <= 4
    assert said[-1].startswith("a is back after 2")


@pytest.mark.parametrize("code", [2, 78])
def test_wrong_settings_end_the_process_and_with_the_last_of_a_kind_the_deployment(
    tmp_path: Path, code: int
) -> None:
    clock = Clock()
    wrong = child(tmp_path, "a", f"exit {code}")
    with supervise(wrong, run_dir=tmp_path / "run", clock=clock) as harness:
        harness.was_ready = True
        eventually(lambda: not harness.children[0].is_alive)
        with pytest.raises(CommandError, match=f"No {CHILD} is left"):
            harness.poll()
    fine = child(tmp_path, "b", "run")
    with supervise(wrong, fine, run_dir=tmp_path / "run", clock=clock) as harness:
        harness.was_ready = True
        die(harness, clock, 3)
        assert [one.given_up for one in harness.children] == [True, False]


def test_a_start_that_the_system_refuses_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with supervise(
        child(tmp_path, "a", "exit 3"), run_dir=tmp_path / "run", clock=clock
    ) as harness:
        harness.was_ready = True
        eventually(lambda: not harness.children[0].is_alive)
        harness.poll()

        def refuse(*arguments: object, **options: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        with monkeypatch.context() as patch:
            patch.setattr("penstock.supervisor.subprocess.Popen", refuse)
            clock.offset += MAX_DELAY_S
            harness.poll()
            harness.poll()
        clock.offset += MAX_DELAY_S
        harness.poll()
        eventually(lambda: len(lines(tmp_path / "a")) == 2)


def test_a_process_that_ignores_the_stop_is_killed_at_the_timeout(tmp_path: Path) -> None:
    clock = Clock()
    spec = child(tmp_path, "a", "stubborn")
    with supervise(spec, run_dir=tmp_path / "run", clock=clock, drain_timeout_s=0.2) as harness:
        eventually(lambda: len(lines(tmp_path / "a")) == 1)
    assert harness.children[0].process is not None
    assert harness.children[0].process.returncode == -signal.SIGKILL


def test_a_signal_asks_the_deployment_to_stop(tmp_path: Path) -> None:
    with supervise(child(tmp_path, "a", "run"), run_dir=tmp_path / "run") as harness:
        eventually(lambda: len(lines(tmp_path / "a")) == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        harness.run()
        assert harness.stop_requested


def test_a_second_signal_reaches_what_drains_and_what_stops_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, later = child(tmp_path, "a", "drain", 0), child(tmp_path, "b", "drain", 1)

    def interrupt() -> None:
        eventually(lambda: "draining" in lines(tmp_path / "a"))
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    with supervise(first, later, run_dir=tmp_path / "run", drain_timeout_s=60.0) as harness:
        eventually(lambda: len(lines(tmp_path / "a")) == len(lines(tmp_path / "b")) == 1)
        os.kill(os.getpid(), signal.SIGINT)
        harness.run()
        interrupting.start()
    interrupting.join()
    for name in ("a", "b"):
        assert lines(tmp_path / name)[1:] == ["draining", "stopped"]
    assert [one.process.returncode for one in harness.children if one.process] == [0, 0]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "stopping: running requests have 50 s to finish, and all ends within 60 s; a second Ctrl-C"
        " or SIGTERM ends it at once"
    ]


def settings_of(**arguments: object) -> ServeSettings:
    return build_settings(arguments, {"HOME": "/home/someone", "MODEL_PATH": "x", "KEPT": "1"})


def test_there_is_one_process_a_role_and_engine(tmp_path: Path) -> None:
    settings = settings_of(models=["a=x", "b=y"], engines=2, parsers=3)
    specs = process_specs(settings, {"a": tmp_path, "b": None}, tmp_path)
    modules = [spec.module for spec in specs]
    assert modules.count("engine_worker") == 4
    assert modules.count("toolparser_worker") == 3
    assert modules.count("gateway") == modules.count("auth_worker") == 1
    engine = next(spec for spec in specs if spec.name == "engine[a]-0")
    assert engine.environment["PENSTOCK_MODEL_PATH"] == str(tmp_path)
    demo = next(spec for spec in specs if spec.name == "engine[b]-0")
    assert "PENSTOCK_MODEL_PATH" not in demo.environment


def test_engines_divide_the_cores_unless_they_were_given_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "num_usable_cores", lambda: 8)

    def threads(**arguments: object) -> list[str | None]:
        settings = settings_of(**arguments)
        folders = {model.name: None for model in settings.models}
        common = common_environment(settings, tmp_path)
        return [
            {**common, **spec.environment}.get("PENSTOCK_THREADS")
            for spec in process_specs(settings, folders, tmp_path)
            if spec.module == "engine_worker"
        ]

    assert threads() == [None]
    assert threads(threads=5) == ["5"]
    assert threads(engines=3) == ["3", "3", "2"]
    assert threads(models=["a=x", "b=y"]) == ["4", "4"]
    assert threads(models=["a=x", "b=y"], threads=6) == ["6", "6"]


def test_on_few_cores_the_quick_ones_start_behind_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started_after(num_cores: int) -> dict[str, Path | None]:
        monkeypatch.setattr(supervisor, "num_usable_cores", lambda: num_cores)
        specs = process_specs(settings_of(), {"x": None}, tmp_path)
        return {spec.module: spec.starts_after for spec in specs}

    few, many = started_after(2), started_after(3)
    assert few["auth_worker"] == few["toolparser_worker"] == tmp_path / "port"
    assert few["engine_worker"] is few["gateway"] is None
    assert set(many.values()) == {None}


@pytest.mark.parametrize("comes", [True, False])
def test_a_process_starts_with_the_file_that_it_waits_for_and_not_too_late(
    tmp_path: Path, comes: bool
) -> None:
    clock, file = Clock(), tmp_path / "there"
    late = replace(child(tmp_path, "late", "run"), starts_after=file)
    first = child(tmp_path, "first", "run")
    with supervise(late, first, run_dir=tmp_path / "run", clock=clock) as harness:
        for _ in range(3):
            harness.poll()
        assert [one.process is not None for one in harness.children] == [False, True]
        if comes:
            file.touch()
        else:
            clock.offset += 5.0
        harness.poll()
        for name in ("first", "late"):
            eventually(lambda name=name: len(lines(tmp_path / name)) == 1)  # type: ignore[misc]
        assert harness.children[0].is_alive
    assert all(is_gone(int(lines(tmp_path / name)[0])) for name in ("first", "late"))


def test_several_gateways_share_a_port_and_have_sockets_of_their_own(tmp_path: Path) -> None:
    settings = settings_of(gateways=2)
    common = common_environment(settings, tmp_path)
    engines = [f"ipc://{tmp_path}/engine", f"ipc://{tmp_path}/engine-1"]
    assert common["PENSTOCK_ENGINE_ENDPOINT"] == ",".join(engines)
    specs = process_specs(settings, {"x": None}, tmp_path)
    gateways = [spec for spec in specs if spec.module == "gateway"]
    assert [spec.name for spec in gateways] == ["gateway", "gateway-1"]
    for spec, engine in zip(gateways, engines, strict=True):
        assert spec.environment["PENSTOCK_ENGINE_ENDPOINT"] == engine
        assert spec.environment["PENSTOCK_SHARE_PORT"] == "true"
        assert spec.environment["PENSTOCK_SHARE_DATA_DIR"] == "true"
    port_files = {spec.environment["PENSTOCK_PORT_FILE"] for spec in gateways}
    assert port_files == {str(tmp_path / "port"), str(tmp_path / "port-1")}
    others = [spec for spec in specs if spec.module != "gateway"]
    assert not any("PENSTOCK_ENGINE_ENDPOINT" in spec.environment for spec in others)


def test_each_gateway_has_a_port_for_its_metrics(tmp_path: Path) -> None:
    settings = settings_of(gateways=3, metrics_port=9100)
    specs = process_specs(settings, {"x": None}, tmp_path)
    ports = [s.environment["PENSTOCK_METRICS_PORT"] for s in specs if s.module == "gateway"]
    assert ports == ["9100", "9101", "9102"]
    alone = process_specs(settings_of(), {"x": None}, tmp_path)
    assert [s.environment["PENSTOCK_METRICS_PORT"] for s in alone if s.module == "gateway"] == ["0"]


@pytest.mark.parametrize("wrong", [{"metrics_port": 65535}, {"metrics_port": 7999}])
def test_ports_of_metrics_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--metrics-port"):
        settings_of(gateways=2, **wrong)


def test_a_gateway_alone_shares_nothing(tmp_path: Path) -> None:
    specs = process_specs(settings_of(), {"x": None}, tmp_path)
    (gateway,) = (spec for spec in specs if spec.module == "gateway")
    assert not any("SHARE" in name for name in gateway.environment)


def test_gateways_share_no_unix_socket() -> None:
    with pytest.raises(UsageError, match="--gateways"):
        settings_of(gateways=2, uds="/run/penstock.sock")


def test_the_gateway_stops_first_and_auth_last() -> None:
    specs = process_specs(settings_of(), {"x": None}, Path("/run"))
    order = [spec.module for spec in sorted(specs, key=lambda spec: spec.stop_order)]
    assert order[0] == "gateway"
    assert order[-1] == "auth_worker"


def test_children_inherit_the_environment_but_not_the_model_aliases(tmp_path: Path) -> None:
    environment = common_environment(settings_of(), tmp_path)
    assert environment["KEPT"] == "1"
    assert "MODEL_PATH" not in environment
    assert environment["PENSTOCK_ALLOW_ANONYMOUS"] == "true"
    assert environment["PENSTOCK_PARENT_PID"] == str(os.getpid())


def test_a_ready_file_of_the_supervisor_is_no_child_s(tmp_path: Path) -> None:
    environ = {"HOME": "/home/someone", "PENSTOCK_READY_FILE": "/tmp/ready"}
    settings = build_settings({}, environ)
    assert settings.child_environment["PENSTOCK_READY_FILE"] == "/tmp/ready"
    assert "PENSTOCK_READY_FILE" not in common_environment(settings, tmp_path)


@pytest.mark.parametrize("name", ["PENSTOCK_ADMIN_KEY", "PENSTOCK_DATABASE_URL"])
def test_only_auth_is_told_its_secrets(tmp_path: Path, name: str) -> None:
    settings = build_settings({}, {"HOME": "/home/someone", name: "secret"})
    assert name not in common_environment(settings, tmp_path)
    told = {
        spec.module: spec.environment.get(name)
        for spec in process_specs(settings, {"penstock-demo": None}, tmp_path)
    }
    assert told.pop("auth_worker") == "secret"
    assert set(told.values()) == {None}


@pytest.mark.parametrize("drain_timeout_s", [0.0, 1.0, 30.0, 600.0])
def test_children_drain_for_less_so_that_they_can_end_before_they_are_killed(
    tmp_path: Path, drain_timeout_s: float
) -> None:
    environment = common_environment(settings_of(drain_timeout_s=drain_timeout_s), tmp_path)
    of_children = float(environment["PENSTOCK_DRAIN_TIMEOUT_S"])
    assert drain_timeout_s - of_children == pytest.approx(min(0.4 * drain_timeout_s, 10.0))


def test_a_start_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    unstartable = ProcessSpec("b", CHILD, {"BAD": "a\0b"})
    harness = supervise(child(tmp_path, "a", "run"), unstartable, run_dir=run_dir)
    with pytest.raises(ValueError, match="null byte"), harness:
        pass
    assert not any(child.is_alive for child in harness.children)
    assert not run_dir.exists()


def test_a_first_start_that_the_system_refuses_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("penstock.supervisor.subprocess.Popen", refuse)
    run_dir = tmp_path / "run"
    with (
        pytest.raises(CommandError, match="can't be started: Resource temporarily unavailable"),
        supervise(child(tmp_path, "a", "run"), run_dir=run_dir),
    ):
        pass
    assert not run_dir.exists()


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervise(child(tmp_path, "a", "run"), run_dir=tmp_path / "run") as harness:
            eventually(lambda: len(lines(tmp_path / "a")) == 1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not harness.stop_requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_run_dir_leaves_room_for_socket_names(tmp_path: Path) -> None:
    run_dir = make_run_dir({"XDG_RUNTIME_DIR": str(tmp_path / ("x" * 90))})
    try:
        assert len(str(run_dir)) < 80
        assert run_dir.stat().st_mode & 0o077 == 0
    finally:
        run_dir.rmdir()


def test_where_no_folder_can_be_made_for_sockets_one_line_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.supervisor.tempfile.tempdir", "/dev/null")
    with pytest.raises(CommandError, match="Not a directory. Name a folder .* TMPDIR"):
        make_run_dir({})


def test_a_model_choice_carries_its_formats_to_its_engine() -> None:
    settings = settings_of()
    model = ModelChoice("m", None, 1, tokenizer=Path("/t"), tool_format="hermes")
    serve = ServeSettings(models=(model,), data_dir=settings.data_dir)
    specs = process_specs(serve, {"m": None}, Path("/run"))
    environment = next(s for s in specs if s.module == "engine_worker").environment
    assert environment["PENSTOCK_TOKENIZER_PATH"] == "/t"
    assert environment["PENSTOCK_TOOL_FORMAT"] == "hermes"


def test_parsers_are_told_which_formats_they_must_know() -> None:
    models = (
        ModelChoice("a", None, tool_format="hermes"),
        ModelChoice("b", None, tool_format="llama3_json"),
    )
    specs = process_specs(ServeSettings(models=models), {"a": None, "b": None}, Path("/run"))
    parser = next(spec for spec in specs if spec.module == "toolparser_worker")
    assert parser.environment == {"PENSTOCK_TOOL_FORMAT": "hermes,llama3_json"}


def test_only_the_gateway_is_told_where_its_store_is(tmp_path: Path) -> None:
    url = "postgresql://penstock:secret@db/responses"
    settings = build_settings({}, {"HOME": "/home/someone", "PENSTOCK_STORE_URL": url})
    assert "PENSTOCK_STORE_URL" not in common_environment(settings, tmp_path)
    told = {
        spec.module: spec.environment.get("PENSTOCK_STORE_URL")
        for spec in process_specs(settings, {"penstock-demo": None}, tmp_path)
    }
    assert told.pop("gateway") == url
    assert set(told.values()) == {None}
