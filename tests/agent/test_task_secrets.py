"""Secrets of tasks, kept on the device: which a task may have, where they are, and that no message shows one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.task_secrets import SecretError, Vault, resolve
from proplet.agent.wire import Reason

VALUE = "s3cret-value"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    put(tmp_path / "secrets/db/password", VALUE + "\n")
    (tmp_path / "credentials").mkdir()
    return Vault(("db/*", "app/token"), tmp_path / "secrets", tmp_path / "credentials", "/etc/proplet/proplet.toml")


def put(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def refusal(secret: str, vault: Vault, reason: Reason) -> str:
    with pytest.raises(SecretError) as caught:
        resolve({"VARIABLE": secret}, vault)
    assert caught.value.reason is reason
    assert "VARIABLE" in str(caught.value)
    assert VALUE not in str(caught.value)
    return str(caught.value)


def test_a_secret_is_a_file_without_the_line_break_at_its_end(vault: Vault) -> None:
    assert resolve({"PASSWORD": "db/password"}, vault) == {"PASSWORD": VALUE}
    assert resolve({}, Vault()) == {}


def test_a_systemd_credential_goes_before_a_file(vault: Vault) -> None:
    assert vault.credentials is not None
    put(vault.credentials / "db@password", "other", 0o440)
    assert resolve({"PASSWORD": "db/password"}, vault) == {"PASSWORD": "other"}


def test_what_changed_counts_from_the_next_run(vault: Vault, tmp_path: Path) -> None:
    put(tmp_path / "secrets/db/password", "new")
    assert resolve({"A": "db/password"}, vault) == {"A": "new"}


def test_by_default_no_secret_is_given(vault: Vault) -> None:
    said = refusal("db/password", Vault((), vault.directory, file=vault.file), Reason.PERMISSION_DENIED)
    assert 'add "db/password" to secrets in [agent.permissions] of /etc/proplet/proplet.toml' in said


@pytest.mark.parametrize("secret", ["app/other", "dbx/password", "database/password", "a/token"])
def test_only_what_the_configuration_names_is_given(vault: Vault, secret: str) -> None:
    assert "agent.permissions.secrets" in refusal(secret, vault, Reason.PERMISSION_DENIED)


def test_a_missing_secret_says_where_it_would_be(vault: Vault) -> None:
    said = refusal("app/token", vault, Reason.SECRET_UNAVAILABLE)
    assert "app@token" in said
    assert f"{vault.directory}/app/token" in said
    nowhere = Vault(("*",))
    assert "secrets_dir" in refusal("app/token", nowhere, Reason.SECRET_UNAVAILABLE)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o777])
def test_a_file_that_others_may_use_is_refused(vault: Vault, tmp_path: Path, mode: int) -> None:
    put(tmp_path / "secrets/db/open", VALUE, mode)
    assert "chmod 600" in refusal("db/open", vault, Reason.SECRET_UNAVAILABLE)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a" * 70_000, VALUE.encode() + b"\0"])
def test_what_no_variable_can_hold_is_refused(vault: Vault, tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "secrets/db/odd", "")
    (tmp_path / "secrets/db/odd").write_bytes(content)
    refusal("db/odd", vault, Reason.SECRET_UNAVAILABLE)


@given(name=st.sampled_from(["db", "..", ".", "", "db/..", "/etc", "app"]), key=st.text("./ab@*\0\n", max_size=6))
def test_no_name_leads_out_of_the_directory(tmp_path_factory: pytest.TempPathFactory, name: str, key: str) -> None:
    root = tmp_path_factory.getbasetemp() / "vault"
    for file in ("a", "b", "db/a", "app/a"):
        put(root / "inside" / file, "in")
        put(root / file, "OUT")
    try:
        found = resolve({"V": f"{name}/{key}"}, Vault(("*",), root / "inside"))
    except SecretError:
        return
    assert found == {"V": "in"}
