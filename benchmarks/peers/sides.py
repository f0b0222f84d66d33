"""Penstock and its peers as `side_by_side` sees them: started once, then asked in turns."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks import backends
from benchmarks.backends import completions, free_port, served, wait_until_idle
from benchmarks.peers.installed import NotInstalledError, Peers
from benchmarks.peers.write_gguf import write_gguf
from benchmarks.steps import progress
from benchmarks.stream_client import stream_all

START_TIMEOUT_S: Final = 600.0
LONG_PROMPT_TOKENS: Final = 1024
_SPARE_TOKENS: Final = 32
"""Of a row's context beyond prompt and output."""
GGUF_TYPES: Final = {"bfloat16": ("BF16",), "int8": ("Q8_0",), "int4": ("Q4_0", "Q4_K_M")}
OPENVINO_FORMATS: Final = {
    "bfloat16": ("--weight-format", "fp16"),
    "int8": ("--weight-format", "int8"),
    # Its own groups of 128 don't divide the rows of SmolLM2-135M.
    "int4": ("--weight-format", "int4", "--group-size", "64"),
}


class Side:
    """One of those that are compared.

    Attributes:
        name: For the table.
        weights: bfloat16, int8 or int4: sides of one type are compared.
        is_alone: It has no server: what is timed is a call of its engine.
        start_s: From its start until it answers.
        rates: Tokens per second by concurrency, one of each round.
        first_s: Seconds to the first token of a long prompt, one of each round.
        resident_mib: Of all its processes, what they share counted once.
    """

    is_alone = False

    def __init__(self, name: str, weights: str) -> None:
        self.name, self.weights = name, weights
        self.start_s = 0.0
        self.rates: dict[int, list[float]] = {}
        self.first_s: list[float] = []
        self.resident_mib = 0
        self._process: psutil.Popen | None = None

    def start(self, stack: ExitStack) -> None:
        """Starts it; `stack` ends it.

        Raises:
            NotInstalledError: It does not start here.
        """
        raise NotImplementedError

    def tokens_per_s(self, concurrency: int, seed: int, num_new_tokens: int) -> float:
        """New tokens per second of so many requests at once, prompts included."""
        raise NotImplementedError

    def time_to_first_token(self, seed: int) -> float:
        """Seconds until the first token of one long prompt."""
        raise NotImplementedError

    def measure_memory(self) -> None:
        """Sets `resident_mib`."""
        assert self._process is not None
        processes = [self._process, *self._process.children(recursive=True)]
        self.resident_mib = sum(each.memory_full_info().pss for each in processes) >> 20


class ServerSide(Side):
    """A server of OpenAI's interface.

    Args:
        name, weights: See `Side`.
        command: Starts it, with `{port}` for its port.
        ready_path: Answers 200 once it works.
        model: Its name in requests.
        environment: Added to its environment.
        fields: Added to the body of every request.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        command: Sequence[str],
        *,
        ready_path: str,
        model: str,
        environment: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, weights)
        self._command = command
        self._ready_path = ready_path
        self._model = model
        self._environment = environment or {}
        self._fields = fields or {}
        self._url = ""

    def start(self, stack: ExitStack) -> None:
        self._process, self._url, self.start_s = stack.enter_context(
            _running(self._command, self._ready_path, self._environment)
        )

    def tokens_per_s(self, concurrency: int, seed: int, num_new_tokens: int) -> float:
        bodies = completions(self._model, concurrency, seed, num_new_tokens=num_new_tokens)
        answers = stream_all(self._url, self._with_fields(bodies), "/v1/completions")
        return sum(each.num_tokens for each in answers) / max(each.last_s for each in answers)

    def time_to_first_token(self, seed: int) -> float:
        return self._first_s(self._url, seed)

    def _first_s(self, url: str, seed: int) -> float:
        bodies = completions(
            self._model, 1, seed, num_prompt_tokens=LONG_PROMPT_TOKENS, num_new_tokens=2
        )
        return stream_all(url, self._with_fields(bodies), "/v1/completions")[0].first_s

    def _with_fields(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [body | dict(self._fields) for body in bodies]


class LlamaCppSide(ServerSide):
    """llama.cpp's server; a long prompt has a second one, for its slots share the context."""

    def __init__(self, programs: Path, gguf: Path, weights: str, slots: int, context: int) -> None:
        def command(num_slots: int, slot_tokens: int) -> list[str]:
            threads = str(len(os.sched_getaffinity(0)))
            options = {
                "-m": str(gguf),
                "-np": str(num_slots),
                "-c": str(num_slots * slot_tokens),
                "-t": threads,
                "-tb": threads,
                "--host": "127.0.0.1",
                "--port": "{port}",
            }
            words = [word for option in options.items() for word in option]
            return [str(programs / "llama-server"), *words]

        self._long_command = command(1, LONG_PROMPT_TOKENS + _SPARE_TOKENS)
        self._long_url = ""
        super().__init__(
            f"llama.cpp {gguf.stem}",
            weights,
            command(slots, context),
            ready_path="/health",
            model="model",
            fields={"cache_prompt": False},
        )

    def start(self, stack: ExitStack) -> None:
        super().start(stack)
        _, self._long_url, _ = stack.enter_context(_running(self._long_command, "/health", {}))

    def time_to_first_token(self, seed: int) -> float:
        return self._first_s(self._long_url, seed)


class PenstockSide(ServerSide):
    """This server, with what `--backend auto` takes; its caches are filled before it counts.

    Args:
        folder: Of the checkpoint.
        cache: Folder of compiled programs and packed weights.
        weights: See `Side`.
        concurrency: The most requests at once.
        speculation: Whether answers draft their next tokens.
    """

    def __init__(
        self, folder: Path, cache: Path, weights: str, concurrency: int, speculation: str = "off"
    ) -> None:
        name = "Penstock" if speculation == "off" else f"Penstock, drafts {speculation}"
        super().__init__(name, weights, (), ready_path="/ready", model=folder.name)
        self._folder, self._cache, self._concurrency = folder, cache, concurrency
        self._speculation = speculation

    def start(self, stack: ExitStack) -> None:
        for is_counted in (False, True):
            self._url = f"http://127.0.0.1:{free_port()}"
            side = backends.Side("auto", self.weights, self._url, self._speculation)
            server = served(self._folder, self._cache, side, self._concurrency)
            if not is_counted:
                with server as process:
                    self.tokens_per_s(self._concurrency, 0, 8)
                    wait_until_idle(process)
                continue
            self._process = stack.enter_context(server)
            self.start_s = side.start_s
            wait_until_idle(self._process)


class AloneSide(Side):
    """An engine without a server: `alone.py` in an environment of its own."""

    is_alone = True

    def __init__(self, name: str, weights: str, python: Path, engine: str, folder: Path) -> None:
        super().__init__(name, weights)
        script = Path(__file__).with_name("alone.py")
        self._command = [str(python), str(script), engine, str(folder), weights]

    def start(self, stack: ExitStack) -> None:
        started = time.perf_counter()
        self._process = stack.enter_context(_child(self._command, {}))
        self._answer()
        self.start_s = time.perf_counter() - started

    def tokens_per_s(self, concurrency: int, seed: int, num_new_tokens: int) -> float:
        prompts = [body["prompt"] for body in completions("", concurrency, seed)]
        return concurrency * num_new_tokens / self._seconds(prompts, num_new_tokens)

    def time_to_first_token(self, seed: int) -> float:
        body = completions("", 1, seed, num_prompt_tokens=LONG_PROMPT_TOKENS)[0]
        return self._seconds([body["prompt"]], 1)

    def _seconds(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> float:
        assert self._process is not None
        question = json.dumps({"prompts": prompts, "num_new_tokens": num_new_tokens})
        self._process.stdin.write(question.encode() + b"\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> Any:
        """What it says next.

        Raises:
            NotInstalledError: It has ended.
        """
        assert self._process is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise NotInstalledError(_last_words(self._process))
        return json.loads(line)


@contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[psutil.Popen]:
    """A process of a peer, which must not find our packages; its words go to a file."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = Path(f"/proc/self/fd/{os.memfd_create('peer')}")
    with log.open("wb") as errors:
        process = psutil.Popen(
            list(command),
            env=kept | {"HF_HUB_OFFLINE": "1"} | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if "alone.py" in " ".join(command) else errors,
            stderr=errors,
            start_new_session=True,
        )
    process.log = log
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except psutil.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_words(process: psutil.Popen) -> str:
    text = process.log.read_bytes()[-300:].decode(errors="replace")
    return f"it ended with {process.poll()}: …{' '.join(text.split())}"


@contextmanager
def _running(
    command: Sequence[str], ready_path: str, environment: Mapping[str, str]
) -> Iterator[tuple[psutil.Popen, str, float]]:
    """A server that answers, its address, and how long that took.

    Raises:
        NotInstalledError: It ended, or never answered.
    """
    port = free_port()
    url, started = f"http://127.0.0.1:{port}", time.perf_counter()
    with _child([word.replace("{port}", str(port)) for word in command], environment) as process:
        while not _is_ready(f"{url}{ready_path}"):
            if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                raise NotInstalledError(_last_words(process))
            time.sleep(0.02)
        yield process, url, time.perf_counter() - started


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def llama_cpp_sides(
    peers: Peers, folder: Path, types: Sequence[str], slots: int, context: int
) -> list[Side]:
    """llama.cpp with the same weights as GGUF, by every one of its types.

    Raises:
        NotInstalledError: It can't be built, or the files can't be made.
    """
    programs, whole = peers.llama_cpp(), folder.parent / "BF16.gguf"
    write_gguf(folder, whole)
    sides: list[Side] = []
    for weights in types:
        for gguf_type in GGUF_TYPES[weights]:
            file = folder.parent / f"{gguf_type}.gguf"
            if not file.exists():
                _run([str(programs / "llama-quantize"), str(whole), str(file), gguf_type])
            sides.append(LlamaCppSide(programs, file, weights, slots, context))
    return sides


def openvino_sides(peers: Peers, folder: Path, types: Sequence[str]) -> list[Side]:
    """OpenVINO GenAI's engine with the same weights.

    Raises:
        NotInstalledError: It can't be installed.
    """
    python = peers.python("openvino")
    sides: list[Side] = []
    for weights in types:
        target = folder.parent / f"openvino-{weights}"
        cli = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(folder)]
        task = ["--task", "text-generation-with-past", *OPENVINO_FORMATS[weights]]
        try:
            _run([*cli, *task, str(target)])
        except NotInstalledError as error:
            progress(f"OpenVINO {weights} is left out: {error}")
            continue
        sides.append(AloneSide("OpenVINO GenAI, engine", weights, python, "openvino", target))
    return sides


def _run(command: Sequence[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-300:].decode(errors="replace")
        raise NotInstalledError(f"{command[0]} failed: …{' '.join(tail.split())}")
