"""Where credentials come from."""

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from proplet.oci.auth import Credentials, find_credentials
from proplet.oci.errors import InvalidCredentials
from proplet.oci.settings import HostSettings, RegistrySettings

SECRET = "s3cret:with:colons"


def encoded(user: str = "user", secret: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory and a PATH of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


def write(path: Path, config: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def helper(home: Path, name: str, script: str) -> None:
    path = write(home / "bin" / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)


def found(registry: str = "ghcr.io", **settings: Any) -> tuple[str, str] | None:
    credentials = find_credentials(registry, RegistrySettings(**settings))
    return (credentials.username, credentials.password) if credentials else None


def failing(**settings: Any) -> str:
    with pytest.raises(InvalidCredentials) as caught:
        found(**settings)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_anything_there_are_no_credentials(home: Path) -> None:
    assert found() is None


def test_the_settings_go_before_every_file(home: Path) -> None:
    write(home / ".docker" / "config.json", {"auths": {"ghcr.io": encoded("other")}})
    assert found(hosts={"ghcr.io": HostSettings(username="me", password=SECRET)}) == ("me", SECRET)
    assert "both" in failing(hosts={"ghcr.io": HostSettings(username="me")})


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/", "https://ghcr.io/v1/"])
def test_the_users_own_file_is_read_whatever_form_the_name_has(home: Path, key: str) -> None:
    write(home / ".docker" / "config.json", {"auths": {"evil.ghcr.io": encoded("evil"), key: encoded()}})
    assert found() == ("user", SECRET)
    assert found(use_docker_config=False) is None
    assert found("other.io") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io"])
def test_docker_hub_is_known_by_its_old_name(home: Path, key: str) -> None:
    write(home / ".docker" / "config.json", {"auths": {key: encoded()}})
    assert found("docker.io") == ("user", SECRET)


def test_the_environment_and_then_an_explicit_path_name_another_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / ".docker" / "config.json", {"auths": {"ghcr.io": encoded("home")}})
    write(home / "elsewhere" / "config.json", {"auths": {"ghcr.io": encoded("environment")}})
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    assert found() == ("environment", SECRET)
    assert found(docker_config=write(home / "own.json", {"auths": {}})) is None


def test_a_helper_is_asked_before_the_file_and_a_store_after_it(home: Path) -> None:
    helper(home, "one", f"""read name; printf '{{"Username": "%s", "Secret": "{SECRET}"}}' "$name" """)
    config = home / ".docker" / "config.json"
    write(config, {"auths": {"ghcr.io": encoded()}, "credHelpers": {"ghcr.io": "one"}})
    assert found() == ("ghcr.io", SECRET)
    write(config, {"auths": {"ghcr.io": encoded()}, "credsStore": "one"})
    assert found() == ("user", SECRET)
    write(config, {"auths": {"ghcr.io": {}}, "credsStore": "one"})
    assert found() == ("ghcr.io", SECRET)


def test_a_helper_that_has_nothing_means_no_credentials(home: Path) -> None:
    helper(home, "none", "echo credentials not found in native keychain; exit 1")
    write(home / ".docker" / "config.json", {"credsStore": "none"})
    assert found() is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"echo {SECRET} >&2; exit 3", "status 3"),
        (f"echo {SECRET}", "did not answer"),
        ("echo '{}'", "did not answer"),
    ],
)
def test_a_helper_that_fails_is_named_and_its_output_is_not_shown(home: Path, script: str, words: str) -> None:
    helper(home, "bad", script)
    write(home / ".docker" / "config.json", {"credHelpers": {"ghcr.io": "bad"}})
    message = failing()
    assert words in message
    assert "docker-credential-bad" in message


@pytest.mark.parametrize("name", ["missing", "../../bin/sh", "a b", "-x"])
def test_a_helper_that_is_not_there_or_no_name_is_an_error(home: Path, name: str) -> None:
    write(home / ".docker" / "config.json", {"credsStore": name})
    failing()


@pytest.mark.parametrize(
    "config",
    [
        SECRET, "[]", '{"auths": 3}', '{"auths": {"ghcr.io": {"auth": "%%%"}}}', '{"credHelpers": []}',
        '{"auths": {"ghcr.io": {"auth": "bm9jb2xvbg=="}}}', '{"auths": {"ghcr.io": {"identitytoken": "x\\ny"}}}',
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(home: Path, config: str) -> None:
    assert str(write(home / ".docker" / "config.json", config)) in failing()


def test_a_named_file_that_does_not_exist_is_an_error(home: Path) -> None:
    assert "does not exist" in failing(docker_config=home / "nowhere.json")


def test_an_identity_token_of_docker_login_or_of_a_helper_goes_before_a_password(home: Path) -> None:
    config = home / ".docker" / "config.json"
    write(config, {"auths": {"ghcr.io": {**encoded("user", ""), "identitytoken": "t0ken"}}})
    first = find_credentials("ghcr.io", RegistrySettings())
    helper(home, "one", """echo '{"Username": "<token>", "Secret": "t0ken"}'""")
    write(config, {"credHelpers": {"ghcr.io": "one"}})
    second = find_credentials("ghcr.io", RegistrySettings())
    for found in (first, second):
        assert found is not None
        assert found.identity_token == "t0ken"
        assert "t0ken" not in repr(found) + found.name


def test_a_token_that_docker_login_keeps_for_the_registry_itself_is_found(home: Path) -> None:
    write(home / ".docker" / "config.json", {"auths": {"ghcr.io": {"registrytoken": "t0ken"}}})
    found = find_credentials("ghcr.io", RegistrySettings())
    assert found is not None
    assert found.bearer == "t0ken"
    assert "t0ken" not in repr(found) + found.name


def test_no_secret_is_ever_shown() -> None:
    assert SECRET not in repr(Credentials("user", SECRET, "here"))
    assert SECRET not in repr(RegistrySettings(hosts={"a.b": HostSettings(username="u", password=SECRET)}))
