"""Key files: made once, private, checked when read."""

import stat
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from protocol.wire.keygen import generate_keys, generate_keys_by_role
from protocol.wire.keys import ClientSecurity, SecretKey, ServerSecurity


def test_keygen_makes_a_pair_for_each_role_and_hides_the_secrets(tmp_path: Path) -> None:
    written = generate_keys(tmp_path / "keys")
    assert sorted(path.name for path in written) == sorted(
        f"{owner}.{kind}"
        for owner in ("gateway", "engine", "auth", "toolparser")
        for kind in ("secret", "public")
    )
    for path in written:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o600 if path.suffix == ".secret" else 0o644)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_keygen_leaves_existing_keys_alone(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    before = (tmp_path / "engine.secret").read_bytes()
    assert generate_keys(tmp_path) == ()
    assert (tmp_path / "engine.secret").read_bytes() == before


def test_half_a_pair_is_reported_and_not_replaced(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    (tmp_path / "auth.public").unlink()
    with pytest.raises(ConfigurationError, match=r"auth\.public"):
        generate_keys(tmp_path)


def test_each_side_reads_what_it_needs(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    server = ServerSecurity.load(tmp_path)
    client = ClientSecurity.load(tmp_path, "engine")
    assert server.allowed_names("engine")[client.public_key] == "engine"
    assert client.public_key not in server.allowed_names("auth")
    assert client.server_public_key == server.own_public_key


def test_a_secret_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    (tmp_path / "engine.secret").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        ClientSecurity.load(tmp_path, "engine")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 39 + b"\x00", b"x" * 64])
def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    generate_keys(tmp_path)
    (tmp_path / "gateway.public").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"gateway\.public holds no CURVE key"):
        ClientSecurity.load(tmp_path, "engine")


def test_missing_keys_lead_to_keygen(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="penstock keygen"):
        ServerSecurity.load(tmp_path)


def test_a_worker_without_keys_is_told_to_copy_them_and_not_to_make_foreign_ones(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match="copy the folder of this role") as raised:
        ClientSecurity.load(tmp_path, "engine")
    assert "makes the keys" not in raised.value.message


def test_a_secret_does_not_show_itself() -> None:
    assert "topsecret" not in f"{SecretKey(b'topsecret')!r} {SecretKey(b'topsecret')}"


def test_keys_by_role_give_each_folder_just_what_it_needs(tmp_path: Path) -> None:
    generate_keys_by_role(tmp_path)
    names = {folder.name: {path.name for path in folder.iterdir()} for folder in tmp_path.iterdir()}
    publics = {f"{owner}.public" for owner in ("gateway", "engine", "auth", "toolparser")}
    assert names == {
        "gateway": {"gateway.secret", *publics},
        **{
            role: {f"{role}.secret", f"{role}.public", "gateway.public"}
            for role in ("engine", "auth", "toolparser")
        },
    }
    server = ServerSecurity.load(tmp_path / "gateway")
    client = ClientSecurity.load(tmp_path / "engine", "engine")
    assert server.allowed_names("engine")[client.public_key] == "engine"
    assert client.server_public_key == server.own_public_key


def test_an_emptied_folder_gets_new_keys_that_the_others_learn(tmp_path: Path) -> None:
    generate_keys_by_role(tmp_path)
    assert generate_keys_by_role(tmp_path) == ()
    before = ServerSecurity.load(tmp_path / "gateway")
    for path in (tmp_path / "engine").iterdir():
        path.unlink()
    generate_keys_by_role(tmp_path)
    after = ServerSecurity.load(tmp_path / "gateway")
    assert after.own_public_key == before.own_public_key
    assert after.role_keys["auth"] == before.role_keys["auth"]
    assert after.role_keys["engine"] != before.role_keys["engine"]
    assert (
        ClientSecurity.load(tmp_path / "engine", "engine").public_key == after.role_keys["engine"]
    )


def test_a_folder_for_keys_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("in the way")
    with pytest.raises(ConfigurationError, match="Cannot write keys"):
        generate_keys_by_role(tmp_path)
