"""The houses that end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import House, start_house, stop_house


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[House]:
    """The house that most tests share; they leave it as they found it."""
    house = start_house(
        tmp_path_factory.mktemp("house") / "data",
        cache_dir,
        "--deterministic",
        PENSTOCK_PROFILE_DIR=str(tmp_path_factory.mktemp("profiles")),
    )
    yield house
    assert stop_house(house) == 0


@pytest.fixture
def client(house: House) -> Any:
    """An OpenAI client of the shared house."""
    return house.client()
