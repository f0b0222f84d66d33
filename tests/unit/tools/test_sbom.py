"""The bill of materials: what a lock pins, with hashes, licences and who needs whom."""

import json

import pytest

from tools.lock import FOLDER
from tools.sbom import RUN_BY_USERS, bill, read_lock

LOCK = f"""# A comment.
fastapi==0.0.1 \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
not-installed-here==1.2 ; python_version < '4' \\
    --hash=sha256:{"c" * 64}
"""


def test_a_lock_is_read_with_its_hashes() -> None:
    first, second = read_lock(LOCK)
    assert first == ("fastapi", "0.0.1", ("a" * 64, "b" * 64))
    assert second == ("not-installed-here", "1.2", ("c" * 64,))


def test_what_is_not_installed_has_neither_licence_nor_dependencies() -> None:
    found = bill(LOCK, "9")
    assert [one for one in found["components"] if "licenses" in one] == []
    assert found["dependencies"] == [
        {
            "ref": "pkg:pypi/penstock@9",
            "dependsOn": ["pkg:pypi/fastapi@0.0.1", "pkg:pypi/not-installed-here@1.2"],
        }
    ]


@pytest.mark.parametrize("name", RUN_BY_USERS)
def test_a_bill_of_a_real_lock_is_whole_and_repeats(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    found = bill(text, "9")
    assert json.dumps(bill(text, "9")) == json.dumps(found)
    refs = {one["bom-ref"] for one in found["components"]}
    assert len(refs) == len(read_lock(text))
    for entry in found["dependencies"]:
        assert set(entry["dependsOn"]) <= refs
    for one in found["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
        assert one["externalReferences"]
