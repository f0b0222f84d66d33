"""Writes a software bill of materials (CycloneDX 1.6, JSON) for each lock of what users run.

Packages, versions and the hashes of their files come from requirements/, licences and who needs
whom from the metadata of the packages that are installed here; of one that is not installed
(CUDA's) neither is told.
"""

import argparse
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
RUN_BY_USERS = (
    "serve",
    "gateway",
    "auth",
    "toolparser",
    "setup",
    "engine-cpu",
    "engine-cuda",
)


class Pin(NamedTuple):
    """A package of a lock.

    Attributes:
        name: Canonical (`huggingface-hub`).
        version: The pinned one.
        sha256: Of each file that may be installed.
    """

    name: str
    version: str
    sha256: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str) -> list[Pin]:
    """The packages of a lock, in its order."""
    parts = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    found = [(re.match(r"([a-z0-9-]+)==([^\s;]+)", part), part) for part in parts]
    return [
        Pin(match[1], match[2], tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", part)))
        for match, part in found
        if match
    ]


def _installed(pin: Pin) -> metadata.Distribution | None:
    """What is installed here, if it is the pinned version."""
    try:
        found = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError:
        return None
    return found if found.version == pin.version else None


def _licenses(installed: metadata.Distribution) -> list[dict[str, Any]]:
    """What a package says of its licence, in its newest way of saying it."""
    fields = installed.metadata.json
    if expression := fields.get("license_expression"):
        return [{"expression": str(expression)}]
    if (name := fields.get("license")) and "\n" not in name:
        return [{"license": {"name": str(name)}}]
    classifiers = fields.get("classifier", [])
    names = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License :: ")]
    return [{"license": {"name": name}} for name in names]


def component(pin: Pin) -> dict[str, Any]:
    """A package as CycloneDX has it."""
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": pin.purl,
                "hashes": [{"alg": "SHA-256", "content": one}],
            }
            for one in pin.sha256
        ],
    }
    installed = _installed(pin)
    if installed is not None and (licenses := _licenses(installed)):
        found["licenses"] = licenses
    return found


def depends_on(pin: Pin, pins: dict[str, Pin]) -> dict[str, Any] | None:
    """Which packages of the same lock it needs, if that is known."""
    installed = _installed(pin)
    if installed is None:
        return None
    # A pin that only an extra needs is listed, too: the lock has it because somebody asked for it.
    names = {canonicalize_name(Requirement(line).name) for line in installed.requires or []}
    return {
        "ref": pin.purl,
        "dependsOn": sorted(pins[name].purl for name in names if name in pins),
    }


def bill(lock_text: str, version: str) -> dict[str, Any]:
    """The bill of materials of one lock; the same lock gives the same bill."""
    pins = {pin.name: pin for pin in read_lock(lock_text)}
    root = f"pkg:pypi/penstock@{version}"
    dependencies = [depends_on(pin, pins) for pin in pins.values()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "penstock",
                "version": version,
                "purl": root,
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": [component(pin) for pin in pins.values()],
        "dependencies": [
            {"ref": root, "dependsOn": sorted(pin.purl for pin in pins.values())},
            *(one for one in dependencies if one is not None),
        ],
    }


def main() -> None:
    """Write dist/sbom/NAME.json for each lock."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=ROOT / "dist" / "sbom")
    folder: Path = arguments.parse_args().folder
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUN_BY_USERS:
        lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        found = bill(lock, project["version"])
        text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{folder / name}.json: {len(found['components'])} packages")


if __name__ == "__main__":
    main()
