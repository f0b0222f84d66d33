"""Times how long weights take to load beside reading their file once.

    python -m benchmarks.load                          # SmolLM2-135M's shape, random, bfloat16
    python -m benchmarks.load --shape Qwen2.5-0.5B --dtype int8 --rounds 3
    python -m benchmarks.load --model path/to/model-Q4_K_M.gguf

A first start hashes and packs the checkpoint; the file that it writes behind is waited for, but not
counted, and has a line of its own. A later one reads that file once.
Both read with nothing of the file in memory (the kernel is asked to drop it, as before the plain
read) and once more with all of it there, of which the CPU time is shown, too. Medians of rounds in
turn. Python and jax are loaded already, and nothing is compiled.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.weights import file_digests
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.config import DTYPES, ModelSettings
from engine_worker.loading.decoder import choose_for_settings
from engine_worker.loading.gguf_folder import with_model_folder
from engine_worker.loading.weights import SUFFIX, load_for_backend
from engine_worker.loading.write_behind import WriteBehind

_PIECE_BYTES = 16 * 2**20


def write_checkpoint(folder: Path, shape: str) -> None:
    """Random weights of a shape, in bfloat16."""
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(0)
    sources = weight_sources(declare(decoder_spec(config), jnp.bfloat16))
    tensors = {
        source.name: (random.standard_normal(source.shape, np.float32) * 0.02).astype(jnp.bfloat16)
        for parts in sources
        for source in parts
    }
    save_file(tensors, folder / "model.safetensors")


def forget(files: Sequence[Path]) -> None:
    """Asks the kernel to drop what it holds of some files."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(files: Sequence[Path]) -> None:
    """Reads files from end to end, into one buffer."""
    buffer = bytearray(_PIECE_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


class Loads:
    """Starts of one model, as an engine makes them.

    Args:
        settings: Of the model.
        cache: An empty folder for packed weights.
    """

    def __init__(self, settings: ModelSettings, cache: Path) -> None:
        self._settings, self._cache = settings, cache
        self._behind = WriteBehind()
        self._backend = choose_for_settings(settings)
        self.label = f"{self._backend.weight_type} on {self._backend.name}"
        weights = [*settings.path.glob("*.safetensors"), *settings.path.glob("*.gguf")]
        self.checkpoint = [file.resolve() for file in weights]

    @property
    def packed(self) -> list[Path]:
        """Files that a first start wrote."""
        return list(self._cache.glob(f"*{SUFFIX}"))

    def first(self) -> None:
        """Of a model that was never loaded."""
        self._load()

    def forget_packed(self) -> None:
        """What a first start begins with."""
        shutil.rmtree(self._cache, ignore_errors=True)
        file_digests._known.clear()

    def written(self) -> float:
        """Waits until the file is there; seconds."""
        started = time.perf_counter()
        self._behind.wait()
        return time.perf_counter() - started

    def later(self) -> None:
        """Of a model that was packed; hashes of its files are kept."""
        self._load()

    def _load(self) -> None:
        self._behind = WriteBehind()
        decoder = load_for_backend(
            self._settings.path,
            self._backend,
            self._cache,
            lambda done, what: None,
            behind=self._behind,
        )
        for leaf in decoder.leaves:
            leaf.block_until_ready()


@dataclass(frozen=True, slots=True)
class Call:
    """What is timed.

    Attributes:
        run: Itself.
        files: What it reads.
        before: Done before each time.
        after: Done behind each time; gives the seconds that it took.
    """

    run: Callable[[], None]
    files: Callable[[], Sequence[Path]]
    before: Callable[[], None] = lambda: None
    after: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds: with files dropped, with them in memory, the CPU's of the latter, and behind."""

    cold: float
    warm: float
    cpu: float
    behind: float


def times_of(calls: dict[str, Call], rounds: int) -> dict[str, Times]:
    """Medians of calls, in turn."""
    found: dict[str, list[Times]] = {name: [] for name in calls}
    for index in range(rounds):
        progress(f"round {index + 1} of {rounds}")
        for name, call in calls.items():
            call.before()
            forget(call.files())
            started = time.perf_counter()
            call.run()
            cold = time.perf_counter() - started
            behind = call.after()
            call.before()
            started, cpu_started = time.perf_counter(), time.process_time()
            call.run()
            warm, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            call.after()
            found[name].append(Times(cold, warm, cpu, behind))
    return {
        name: Times(
            *(
                statistics.median(getattr(one, kind) for one in times)
                for kind in ("cold", "warm", "cpu", "behind")
            )
        )
        for name, times in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--model", type=Path, help="a folder or GGUF file instead")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    prepare_backend(None)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        folder = options.model.expanduser().absolute() if options.model else Path(place) / "model"
        if not options.model:
            progress(f"writing {options.shape}")
            folder.mkdir()
            write_checkpoint(folder, options.shape)
        cache = Path(place) / "cache"
        # What is made of a GGUF file stays there when packed weights are forgotten.
        settings = with_model_folder(
            ModelSettings(
                path=folder,
                name="model",
                dtype=options.dtype,
                weights_cache_dir=Path(place) / "made",
            )
        )
        loads = Loads(replace(settings, weights_cache_dir=cache), cache)
        loads.first()
        loads.written()
        print(
            f"{loads.label}; checkpoint, and packed: {_mib(loads.checkpoint)}, "
            f"{_mib(loads.packed)} MiB\n"
        )
        checkpoint, packed = (lambda: loads.checkpoint), (lambda: loads.packed)
        times = times_of(
            {
                "read": Call(lambda: read_once(loads.checkpoint), checkpoint),
                "first": Call(loads.first, checkpoint, loads.forget_packed, loads.written),
                "read packed": Call(lambda: read_once(loads.packed), packed),
                "later": Call(loads.later, packed),
            },
            options.rounds,
        )
    print("| start | | reads the file | loads | ratio |\n|---|---|---|---|---|")
    for name, read in (("first", "read"), ("later", "read packed")):
        for kind in ("cold", "warm", "cpu"):
            file_s, load_s = getattr(times[read], kind), getattr(times[name], kind)
            print(
                f"| {name} | {kind} | {file_s * 1e3:.0f} ms | {load_s * 1e3:.0f} ms"
                f" | {load_s / file_s:.2f} |"
            )
    print(f"\nwritten behind a cold first start: {times['first'].behind * 1e3:.0f} ms more")


def _mib(files: Sequence[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 2**20:.0f}"


if __name__ == "__main__":
    main()
