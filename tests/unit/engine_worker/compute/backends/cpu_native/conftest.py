"""The library of native kernels, at its best level again after each test."""

from collections.abc import Iterator

import pytest

from engine_worker.compute.backends.cpu_native.library import LIBRARY_PATH, Library, load
from engine_worker.errors import NativeUnavailableError
from tests.fakes.native_levels import LEVELS


@pytest.fixture
def kernels() -> Iterator[Library]:
    """The library; the test is skipped where it wasn't built, for want of a compiler."""
    if not LIBRARY_PATH.exists():
        pytest.skip("the native kernels were not built: python setup.py build_ext --inplace")
    library = load(num_threads=2)
    level = library.level
    yield library
    library.choose_level(level)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, kernels: Library) -> str:
    """Each level in turn; skipped where it wasn't compiled or the processor lacks it."""
    try:
        kernels.choose_level(request.param)
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    return str(request.param)
