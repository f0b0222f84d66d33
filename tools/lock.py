"""Writes requirements/*.txt: every package that is installed, pinned, with the hashes of its files.

`make lock` keeps the versions that are pinned already and adds what pyproject.toml newly asks for;
`make lock ARGS=--upgrade` takes the newest that it allows. A lock holds for the
environments of `[tool.uv]` in pyproject.toml, on x86_64 and aarch64, and names no index.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
MARKER = (
    " ; python_full_version < '3.14' and implementation_name == 'cpython'"
    " and sys_platform == 'linux'"
)
"""How the resolver writes the environments of pyproject.toml."""
HEADER = "# {what}, by `make lock`. For CPython {python} to 3.13 on Linux.\n"


class Lock(NamedTuple):
    """One file of pins.

    Attributes:
        name: Of the file, without its ending.
        what: Who installs it.
        groups: Dependency groups of pyproject.toml; none means the project with its extra `cpu`.
        python: The oldest Python that it is for.
        options: More for the resolver.
        alone: Packages whose version may differ from the one in serve.txt.
    """

    name: str
    what: str
    groups: tuple[str, ...]
    python: str = "3.11"
    options: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


LOCKS = (
    Lock("serve", "`make serve`", ()),
    Lock("build", "What installs and builds", ("build",)),
    Lock("test", "`make test` and `make check`, without torch", ("test", "check")),
    Lock("langchain", "The client that `make conformance` tries", ("langchain",)),
    Lock("weights", "The weights that tests use", ("weights",), options=("--no-deps",)),
    Lock("gateway", "The image penstock-gateway", ("gateway", "otlp")),
    Lock("auth", "The image penstock-auth", ("auth", "cli", "otlp")),
    Lock("toolparser", "The image penstock-toolparser", ("toolparser", "otlp")),
    Lock("setup", "The image penstock-setup", ("serve",)),
    Lock("engine-cpu", "The image penstock-engine", ("engine-cpu", "otlp")),
    Lock(
        "engine-cuda",
        "The image penstock-engine-gpu",
        ("engine-cuda", "otlp"),
        python="3.12",
        alone=("flax", "jax", "jaxlib"),
    ),
)
"""The first one's versions bind the others."""


def pins(path: Path) -> dict[str, str]:
    """Package → version of a lock."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", "\n".join(lines), re.MULTILINE))


def write(lock: Lock, options: list[str]) -> None:
    """Resolve one lock, with the versions of the first."""
    path = FOLDER / f"{lock.name}.txt"
    sources = [f"--group={group}" for group in lock.groups] or ["pyproject.toml", "--extra=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        bound = Path(folder) / "constraints.txt"
        first = FOLDER / f"{LOCKS[0].name}.txt"
        versions = pins(first) if lock is not LOCKS[0] else {}
        lines = [f"{name}=={pin}\n" for name, pin in versions.items() if name not in lock.alone]
        bound.write_text("".join(lines), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", *sources, "--constraint", str(bound)),
            *("--universal", "--python-version", lock.python, "--generate-hashes", "--quiet"),
            *("--no-header", "--no-annotate", "--no-python-downloads", "--output-file", str(path)),
            *(*lock.options, *options),
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    text = path.read_text(encoding="utf-8")
    # Said once, above, instead of behind every package.
    text = text.replace(MARKER, "")
    path.write_text(HEADER.format(what=lock.what, python=lock.python) + text, encoding="utf-8")


def main() -> None:
    """Write all of them, the one that binds the others first."""
    FOLDER.mkdir(exist_ok=True)
    for lock in LOCKS:
        write(lock, sys.argv[1:])
        print(f"requirements/{lock.name}.txt: {len(pins(FOLDER / f'{lock.name}.txt'))} packages")


if __name__ == "__main__":
    main()
