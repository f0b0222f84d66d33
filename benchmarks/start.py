"""A warm start of a whole server: when what happens, CPU of each process, and what memory it holds.

    python -m benchmarks.start                                   # SmolLM2-135M, bfloat16
    python -m benchmarks.start --shape Qwen2.5-0.5B --starts 5 --timeline

A checkpoint of a real model's shape with random weights. A first start packs and compiles, and
isn't counted. Each further one has the caches full, and ends after one request. Wall times are the
least of all starts; the log of the quickest one is the timeline.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.backends import free_port, wait_until_idle, write_checkpoint
from benchmarks.shapes import SHAPES
from protocol.runtime.child_environment import without_settings

NUM_PROMPT_TOKENS: Final = 128
NUM_NEW_TOKENS: Final = 16
_TIMEOUT_S: Final = 900.0
_MIB: Final = 2**20
_WEIGHTS_FACTOR, _REST_MIB = 1.15, 500
"""The aim: resident <= weights in their type * 1.15 + used keys and values + 500 MB."""
_QUIET: Final = ("penstock.access", "httpx", "uvicorn.error")


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        ready_s: Until `/ready`.
        cpu_s: Of each process until then.
        events: Seconds since the start, process and text of each line of the log.
        pss_mib, rss_mib: Of each process after one request.
    """

    ready_s: float
    cpu_s: dict[str, float]
    events: list[tuple[float, str, str]]
    pss_mib: dict[str, int]
    rss_mib: dict[str, int]


def start_once(folder: Path, cache_dir: Path, options: Sequence[str], *, waits: bool) -> Start:
    """Starts a server, asks it once, and ends it.

    Args:
        folder: Of the model.
        cache_dir: Of all that is kept between starts.
        options: Further ones of `penstock serve`.
        waits: Until nothing is compiled behind any more, before memory is read.
    """
    url, log = f"http://127.0.0.1:{(port := free_port())}", cache_dir / "log"
    command = [sys.executable, "-m", "penstock", "serve", str(folder), "--no-auth"]
    places = ["--cache-dir", str(cache_dir), "--data-dir", str(cache_dir / "data")]
    with log.open("wb") as stream:
        began, wall = time.perf_counter(), time.time()
        process = psutil.Popen(
            [*command, "--port", str(port), *places, "--log-level", "info", *options],
            env=without_settings(os.environ) | {"PENSTOCK_LOG_FORMAT": "json"},
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )
    try:
        with httpx.Client(base_url=url, timeout=300.0) as client:
            _wait_until_ready(client, process, log, began)
            ready_s = time.perf_counter() - began
            cpu_s = {name: sum(one.cpu_times()[:2]) for name, one in _processes(process)}
            _ask(client, folder.name)
        if waits:
            wait_until_idle(process)
        found = [(name, _memory(one.pid)) for name, one in _processes(process)]
    finally:
        process.terminate()
        process.wait(60)
    pss, rss = ({name: memory[kind] for name, memory in found} for kind in ("Pss", "Rss"))
    return Start(ready_s, cpu_s, _events(log, wall), pss, rss)


def _wait_until_ready(client: httpx.Client, process: psutil.Popen, log: Path, began: float) -> None:
    while time.perf_counter() - began < _TIMEOUT_S:
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        try:
            if client.get("/ready").is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"not ready after {_TIMEOUT_S:.0f} s")


def _ask(client: httpx.Client, model: str) -> None:
    prompt = list(range(5, 5 + NUM_PROMPT_TOKENS))
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": NUM_NEW_TOKENS}
    client.post("/v1/completions", json=body | {"ignore_eos": True}).raise_for_status()


def _processes(process: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """All of the server, by the module that each runs."""
    named = [("penstock", process)]
    for child in process.children(recursive=True):
        words = child.cmdline()
        module = words[words.index("-m") + 1] if "-m" in words else "helper"
        named.append((f"{module} {child.pid}" if module == "helper" else module, child))
    return named


def _memory(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.findall(r"^(Pss|Rss): +(\d+) kB", text, re.MULTILINE)
    return {kind: int(kib) // 1024 for kind, kib in found}


def _events(log: Path, wall: float) -> list[tuple[float, str, str]]:
    events = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("logger") not in _QUIET:
            at = datetime.fromisoformat(entry["time"]).timestamp() - wall
            events.append((at, entry["process"], entry["message"]))
    return sorted(events)


def kv_bytes(shape: str) -> int:
    """Of the tokens of one request, as bfloat16."""
    config = SHAPES[shape]
    heads = config["num_attention_heads"]
    width = config.get("head_dim", config["hidden_size"] // heads) * config["num_key_value_heads"]
    tokens = NUM_PROMPT_TOKENS + NUM_NEW_TOKENS
    return int(tokens * config["num_hidden_layers"] * width * 2 * 2)


def memory_verdict(resident_mib: int, weights_mib: int, kv_mib: int) -> str:
    """The engine's memory beside what it is allowed, with each addend."""
    allowed = weights_mib * _WEIGHTS_FACTOR + kv_mib + _REST_MIB
    verdict = "met" if resident_mib <= allowed else "missed"
    return (
        f"engine resident {resident_mib} MiB, aim weights {weights_mib} x {_WEIGHTS_FACTOR} + used "
        f"keys and values {kv_mib} + {_REST_MIB} = {allowed:.0f} MiB: {verdict} (beside weights "
        f"and keys and values {resident_mib - weights_mib - kv_mib} MiB)"
    )


def tables(starts: Sequence[Start]) -> str:
    """What the starts took, and what memory each process holds."""
    best = min(starts, key=lambda start: start.ready_s)
    ready = ", ".join(f"{start.ready_s:.1f}" for start in starts)
    rows = [
        f"ready after {ready} s, at best {best.ready_s:.2f} s",
        "| process | CPU until ready, s | memory (PSS), MiB |",
        "|---|---|---|",
    ]
    for name in best.cpu_s:
        cpu = min(start.cpu_s.get(name, best.cpu_s[name]) for start in starts)
        rows.append(f"| {name} | {cpu:.2f} | {best.pss_mib.get(name, 0)} |")
    cpu = min(sum(start.cpu_s.values()) for start in starts)
    return "\n".join([*rows, f"| all | {cpu:.2f} | {sum(best.pss_mib.values())} |"])


def main() -> None:
    """Parse options, start, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--timeline", action="store_true")
    args = parser.parse_args()
    options = ["--dtype", args.dtype, "--backend", args.backend, "--kv-memory", "1GiB"]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as home:
        folder, cache_dir = Path(home) / args.shape, Path(home) / "cache"
        cache_dir.mkdir()
        write_checkpoint(folder, args.shape)
        start_once(folder, cache_dir, options, waits=True)  # fills the caches
        starts = [start_once(folder, cache_dir, options, waits=True) for _ in range(args.starts)]
        packed = sum(path.stat().st_size for path in (cache_dir / "weights").glob("*.packed"))
        weights = packed or sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(tables(starts))
    best = min(starts, key=lambda start: start.ready_s)
    resident = best.rss_mib["engine_worker"]
    print(memory_verdict(resident, weights // _MIB, kv_bytes(args.shape) // _MIB))
    if args.timeline:
        for at, process, message in best.events:
            print(f"{at:6.2f} s {process:10} {message}")


if __name__ == "__main__":
    main()
