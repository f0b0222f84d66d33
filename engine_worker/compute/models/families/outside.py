"""Families of decoders that installed packages bring: entry points of the group `penstock.models`.

They are looked up only for an architecture that no family here has, so that a package that can't be
loaded never keeps a model from being served that doesn't need it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from engine_worker.compute.models.families.family import Family
from engine_worker.errors import FamilyPackageError

GROUP: Final = "penstock.models"


@dataclass(frozen=True, slots=True)
class OutsideFamily:
    """A family, and the package and version that it comes from."""

    family: Family
    origin: str


@cache
def outside_families() -> dict[str, OutsideFamily]:
    """Of all installed packages, by architecture; loaded once.

    Raises:
        FamilyPackageError: As `load_families`.
    """
    return load_families(entry_points(group=GROUP))


def load_families(plugins: Iterable[EntryPoint]) -> dict[str, OutsideFamily]:
    """Loads entry points, each of which names a `Family` or a tuple of them.

    Raises:
        FamilyPackageError: One can't be loaded, is something else, or two have one architecture.
    """
    found: dict[str, OutsideFamily] = {}
    for plugin in sorted(plugins, key=lambda one: one.name):
        try:
            loaded = plugin.load()
        except Exception as error:
            # Whatever a package raises, who serves with it must learn which one it was.
            raise FamilyPackageError(
                f"the entry point {plugin.name!r} of {GROUP} ({plugin.value}) cannot be loaded: "
                f"{type(error).__name__}: {error!s:.300}"
            ) from error
        families = loaded if isinstance(loaded, tuple) else (loaded,)
        for family in families:
            if not isinstance(family, Family):
                raise FamilyPackageError(
                    f"the entry point {plugin.name!r} of {GROUP} ({plugin.value}) holds a "
                    f"{type(family).__name__}, not a Family or a tuple of them"
                )
            if family.architecture in found:
                raise FamilyPackageError(
                    f"{found[family.architecture].origin} and {_origin(plugin)} both bring "
                    f"{family.architecture}; uninstall one of them"
                )
            found[family.architecture] = OutsideFamily(family, _origin(plugin))
    return found


def _origin(plugin: EntryPoint) -> str:
    package = plugin.dist
    return plugin.name if package is None else f"{package.name} {package.version}"
