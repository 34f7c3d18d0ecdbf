"""``proplet image verify``, and the signer that ``image inspect`` shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Done, proplet_now
from tests.support.registry import RunningRegistry, running_registry
from tests.support.signatures import DIGEST, VECTORS, parts, push_image, push_signature

pytestmark = pytest.mark.registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        push_image(running.address, "signed")
        push_signature(running.address, "signed", parts("ed25519", "simple"), tagged=True)
        push_signature(running.address, "signed", parts("p384", "bundle"), tagged=False)
        push_image(running.address, "unsigned")
        yield running


def image(home: Path, command: str, *arguments: str | Path) -> Done:
    return proplet_now(home, ["image", command, "--config", home / "node.toml", *arguments])


def key(name: str) -> str:
    return str(VECTORS / name / "key.pub")


@pytest.fixture
def configured(home: Path) -> Path:
    (home / "policy.toml").write_text(f'default = "require"\n[keys.release]\nfile = "{key("p384")}"\n')
    (home / "node.toml").write_text(f'[broker]\n[modules]\nsignature_policy = "{home}/policy.toml"\n')
    return home


def test_the_policy_or_keys_of_the_command_line_say_who_signed(configured: Path, registry: RunningRegistry) -> None:
    name = f"{registry.address}/signed:1"
    done = image(configured, "verify", name)
    assert done.code == 0, done.err
    assert "Signer     release" in done.out
    assert str(DIGEST) in done.out
    other = json.loads(image(configured, "verify", "-o", "json", "--key", key("ed25519"), name).out)
    assert (other["verified"], other["signer"], other["digest"]) == (True, "key.pub", str(DIGEST))


def test_an_image_that_is_not_signed_by_a_known_key_fails_and_says_why(
    configured: Path, registry: RunningRegistry
) -> None:
    name = f"{registry.address}/unsigned:1"
    done = image(configured, "verify", name)
    assert (done.code, done.out) == (1, "")
    assert "is not signed" in done.err
    wrong = image(configured, "verify", "-o", "json", "--key", key("rsa2048"), f"{registry.address}/signed:1")
    said = json.loads(wrong.out)
    assert (wrong.code, said["verified"], said["reason"]) == (1, False, "signature_untrusted")


def test_without_any_key_there_is_nothing_to_verify_with(home: Path, registry: RunningRegistry) -> None:
    (home / "node.toml").write_text("[broker]\n")
    done = image(home, "verify", f"{registry.address}/signed:1")
    assert done.code == 1
    assert "give --key" in done.err
    wrong = image(home, "verify", "--key", "nowhere.pub", f"{registry.address}/signed:1")
    assert wrong.code == 1
    assert "nowhere.pub: No such file" in wrong.err


def test_what_was_changed_in_the_store_is_found(configured: Path, registry: RunningRegistry) -> None:
    name = f"{registry.address}/signed:1"
    found = json.loads(image(configured, "verify", "-o", "json", name).out)
    (module,) = configured.rglob(found["moduleDigest"].removeprefix("sha256:"))
    data = bytearray(module.read_bytes())
    data[10] ^= 1
    module.write_bytes(data)
    assert image(configured, "verify", name).code == 0  # pulled again
    assert module.read_bytes() != data


def test_inspect_shows_who_signed_where_the_policy_asks(configured: Path, registry: RunningRegistry) -> None:
    refused = image(configured, "inspect", "-q", f"{registry.address}/unsigned:1")
    assert refused.code == 1
    assert "is not signed" in refused.err
    done = image(configured, "inspect", "-q", f"{registry.address}/signed:1")
    assert done.code == 0, done.err
    assert "Signer     release" in done.out
    (configured / "policy.toml").write_text('default = "allow"')
    seen = json.loads(image(configured, "inspect", "-q", "-o", "json", f"{registry.address}/unsigned:1").out)
    assert seen["signer"] is None


def test_a_policy_that_is_wrong_is_said_when_the_configuration_is_checked(configured: Path) -> None:
    (configured / "policy.toml").write_text('defualt = "require"')
    done = proplet_now(configured, ["config", "check", "--config", configured / "node.toml"])
    assert done.code != 0
    assert "unknown key 'defualt'" in done.err + done.out
    (configured / "node.toml").write_text("[broker]\n[modules]\nsigned_only = true\n")
    done = proplet_now(configured, ["config", "check", "--config", configured / "node.toml"])
    assert done.code != 0
    assert "signed_only" in done.err + done.out
