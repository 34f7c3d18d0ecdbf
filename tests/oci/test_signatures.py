"""Who signed an image: found in the store and in a real registry, kept, and judged. Four faults are four errors."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proplet.oci.digest import Digest
from proplet.oci.errors import (
    ImageDenied,
    RegistryUnreachable,
    SignatureExpired,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
)
from proplet.oci.layout import OciLayout
from proplet.oci.manifest import Descriptor
from proplet.oci.policy import Policy, Rule, load_policy
from proplet.oci.pull import pull
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.signatures import check, fetch, found_for
from proplet.oci.sources import open_sources
from tests.support.ports import free_port
from tests.support.registry import OCI_MANIFEST, RunningRegistry, push_raw, running_registry
from tests.support.signatures import (
    DIGEST,
    FORMS,
    IMAGE,
    KEYS,
    NAME,
    VECTORS,
    parts,
    push_image,
    push_signature,
    signed_again,
    store,
)

IMAGE_NAME = Reference.parse(f"{NAME}:1")


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def require(tmp_path: Path, *keys: str, more: str = "", pattern: str = "*") -> Policy:
    """A policy that requires these keys: NAME, or NAME=FILE of the vectors."""
    file = tmp_path / "policy.toml"
    tables = []
    for key in keys:
        name, _, where = key.partition("=")
        tables.append(f'[keys.{name}]\nfile = "{VECTORS / (where or f"{name}/key.pub")}"\n')
    file.write_text("".join(tables) + f'[repositories."{pattern}"]\nrule = "require"\n{more}')
    return load_policy(file)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", KEYS)
def test_a_signature_in_the_store_verifies_offline(tmp_path: Path, layout: OciLayout, key: str, form: str) -> None:
    store(layout, parts(key, form), tagged=form == "simple")
    verdict = check(IMAGE_NAME, DIGEST, layout, require(tmp_path, *KEYS), None)
    assert (verdict.rule, verdict.signer, verdict.warning) == (Rule.REQUIRE, key, None)


def test_unsigned_wrongly_signed_tampered_expired_and_denied_are_five_errors(tmp_path: Path, layout: OciLayout) -> None:
    with pytest.raises(SignatureMissing, match="is not signed"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "p256"), None)
    store(layout, parts("p384", "simple"), tagged=True)
    with pytest.raises(SignatureUntrusted, match="none of the keys p256"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "p256"), None)
    tampered = parts("p256", "bundle")
    store(layout, signed_again(tampered, _flip_signature(tampered["layer"])), tagged=False)
    with pytest.raises(SignatureInvalid, match="was changed"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "p256"), None)
    store(layout, parts("p256", "simple"), tagged=True)
    with pytest.raises(SignatureExpired, match="expired on"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "p256=p256/expired.pem"), None)
    (tmp_path / "policy.toml").write_text('default = "deny"')
    with pytest.raises(ImageDenied, match="denied"):
        check(IMAGE_NAME, DIGEST, layout, load_policy(tmp_path / "policy.toml"), None)


def test_a_signature_of_another_image_signs_nothing(tmp_path: Path, layout: OciLayout) -> None:
    other = Digest.of(b"another image")
    found = parts("p256", "simple")
    for data in found.values():
        layout.add_blob(data)
    manifest = Descriptor(OCI_MANIFEST, Digest.of(found["manifest"]), len(found["manifest"]))
    layout.set_reference(f"{NAME}:sha256-{other.hex}.sig", manifest)
    with pytest.raises(SignatureInvalid, match=f"is for {DIGEST}"):
        check(IMAGE_NAME, other, layout, require(tmp_path, "p256"), None)


def test_a_payload_that_was_changed_with_its_manifest_is_not_signed(tmp_path: Path, layout: OciLayout) -> None:
    found = parts("rsa2048", "simple")
    store(layout, signed_again(found, found["layer"].replace(b"ghcr.io/org", b"ghcr.io/evi")), tagged=True)
    with pytest.raises(SignatureUntrusted, match="or was changed"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "rsa2048"), None)
    store(layout, signed_again(found, found["layer"], "no base64!"), tagged=True)
    with pytest.raises(SignatureInvalid, match="base64"):
        check(IMAGE_NAME, DIGEST, layout, require(tmp_path, "rsa2048"), None)


@pytest.mark.parametrize("form", FORMS)
def test_no_byte_of_a_stored_signature_can_be_changed_unnoticed(tmp_path: Path, layout: OciLayout, form: str) -> None:
    found = parts("p256", form)
    store(layout, found, tagged=form == "simple")
    policy = require(tmp_path, "p256")
    for part in ("manifest", "layer"):
        path = layout.path(Digest.of(found[part]))
        for at in range(0, len(found[part]), 7):
            damaged = bytearray(found[part])
            damaged[at] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(SignatureInvalid):
                check(IMAGE_NAME, DIGEST, layout, policy, None)
        path.write_bytes(found[part])
    assert check(IMAGE_NAME, DIGEST, layout, policy, None).signer == "p256"


def test_a_key_and_a_certificate_count_only_in_their_time(tmp_path: Path, layout: OciLayout) -> None:
    store(layout, parts("p256", "simple"), tagged=True)
    certificate = require(tmp_path, "p256=p256/valid.pem")
    assert check(IMAGE_NAME, DIGEST, layout, certificate, None).signer == "p256"
    with pytest.raises(SignatureExpired, match="not valid before"):
        check(IMAGE_NAME, DIGEST, layout, certificate, None, now=datetime(1970, 1, 1, tzinfo=UTC))
    file = tmp_path / "policy.toml"
    file.write_text(
        f'default = "require"\n[keys.p256]\nfile = "{VECTORS}/p256/key.pub"\nnot_after = 2027-01-01T00:00:00Z'
    )
    policy = load_policy(file)
    assert check(IMAGE_NAME, DIGEST, layout, policy, None, now=datetime(2026, 12, 31, tzinfo=UTC)).signer == "p256"
    with pytest.raises(SignatureExpired, match="expired on 2027-01-01"):
        check(IMAGE_NAME, DIGEST, layout, policy, None, now=datetime(2027, 1, 1, tzinfo=UTC))


def test_a_threshold_counts_keys_and_not_their_names(tmp_path: Path, layout: OciLayout) -> None:
    store(layout, parts("p256", "simple"), tagged=True)
    twice = require(tmp_path, "one=p256/key.pub", "two=p256/valid.pem", more="threshold = 2")
    with pytest.raises(SignatureUntrusted, match="needs 2 of the keys one, two"):
        check(IMAGE_NAME, DIGEST, layout, twice, None)
    store(layout, parts("p384", "bundle"), tagged=False)
    both = require(tmp_path, "p256", "p384", more="threshold = 2")
    assert check(IMAGE_NAME, DIGEST, layout, both, None).signer == "p256, p384"


def test_the_name_in_a_signature_is_compared_where_the_policy_asks(tmp_path: Path, layout: OciLayout) -> None:
    store(layout, parts("p256", "simple"), tagged=True)
    copy = Reference.parse("registry.local/copies/module:1")
    assert check(copy, DIGEST, layout, require(tmp_path, "p256"), None).signer == "p256"
    same = require(tmp_path, "p256", more='signed_as = "same"')
    assert check(IMAGE_NAME, DIGEST, layout, same, None).signer == "p256"
    with pytest.raises(SignatureUntrusted, match=f"calls it '{NAME}'"):
        check(copy, DIGEST, layout, same, None)
    pattern = require(tmp_path, "p256", more='signed_as = "ghcr.io/org/*"')
    assert check(copy, DIGEST, layout, pattern, None).signer == "p256"
    nameless = OciLayout(tmp_path / "other")
    store(nameless, parts("p256", "bundle"), tagged=False)
    with pytest.raises(SignatureUntrusted, match="calls it nothing"):
        check(IMAGE_NAME, DIGEST, nameless, same, None)


def test_an_image_that_nobody_decided_about_is_warned_of_once(tmp_path: Path, layout: OciLayout) -> None:
    nothing = load_policy(None)
    first = check(IMAGE_NAME, DIGEST, layout, nothing, None)
    assert (first.rule, first.signer) == (Rule.ALLOW, None)
    assert first.warning is not None
    assert NAME in first.warning
    layout.add_blob(IMAGE)
    layout.set_reference(IMAGE_NAME.store_name, Descriptor(OCI_MANIFEST, DIGEST, len(IMAGE)))
    assert check(IMAGE_NAME, DIGEST, layout, nothing, None).warning is None
    (tmp_path / "policy.toml").write_text('default = "allow"')
    decided = load_policy(tmp_path / "policy.toml")
    assert check(Reference.parse("ghcr.io/org/new:1"), DIGEST, layout, decided, None).warning is None


@pytest.mark.registry
@pytest.mark.parametrize("form", ["simple", "bundle", "referrer"])
def test_signatures_come_from_a_registry_and_stay_in_the_store(
    tmp_path: Path, layout: OciLayout, registry: RunningRegistry, form: str
) -> None:
    repository = f"signed-{form}"
    push_image(registry.address, repository)
    found = parts("referrer", "simple") if form == "referrer" else parts("p256", form)
    push_signature(registry.address, repository, found, tagged=form == "simple")
    reference = Reference.parse(f"{registry.address}/{repository}:1")
    policy = require(tmp_path, "p256", pattern=f"{registry.address}/*")
    with open_sources(reference, RegistrySettings()) as sources:
        assert check(reference, DIGEST, layout, policy, sources).signer == "p256"
    assert check(reference, DIGEST, layout, policy, None).signer == "p256"
    name = f":sha256-{DIGEST.hex}.sig" if form == "simple" else f"@{Digest.of(found['manifest'])}"
    assert found_for(layout, DIGEST) == (f"{registry.address}/{repository}{name}",)
    for data in found.values():
        assert layout.read(Digest.of(data), 10_000) == data


@pytest.mark.registry
def test_a_rotten_signature_is_fetched_again(tmp_path: Path, layout: OciLayout, registry: RunningRegistry) -> None:
    push_image(registry.address, "rotten")
    found = parts("p256", "simple")
    push_signature(registry.address, "rotten", found, tagged=True)
    reference = Reference.parse(f"{registry.address}/rotten:1")
    policy = require(tmp_path, "p256")
    with open_sources(reference, RegistrySettings()) as sources:
        assert fetch(reference, DIGEST, layout, sources) == (f"{reference.name}:sha256-{DIGEST.hex}.sig",)
        layout.path(Digest.of(found["layer"])).write_bytes(b"rotten")
        assert check(reference, DIGEST, layout, policy, sources).signer == "p256"


@pytest.mark.registry
def test_a_broken_signature_hides_no_good_one(tmp_path: Path, layout: OciLayout, registry: RunningRegistry) -> None:
    push_image(registry.address, "broken")
    found = parts("p256", "simple")
    index = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    push_signature(registry.address, "broken", parts("p384", "bundle"), tagged=False)
    tag = f"sha256-{DIGEST.hex}.sig"
    push_raw(registry.address, "broken", tag, index, "application/vnd.oci.image.index.v1+json")
    reference = Reference.parse(f"{registry.address}/broken:1")
    with open_sources(reference, RegistrySettings()) as sources:
        assert check(reference, DIGEST, layout, require(tmp_path, "p384"), sources).signer == "p384"
        with pytest.raises(SignatureInvalid, match="no manifest of"):
            check(reference, DIGEST, layout, require(tmp_path, "p256"), sources)
        push_signature(registry.address, "broken", found, tagged=True)
        assert check(reference, DIGEST, layout, require(tmp_path, "p256"), sources).signer == "p256"


@pytest.mark.registry
def test_a_pull_obeys_the_policy_and_leaves_nothing_that_runs(
    tmp_path: Path, layout: OciLayout, registry: RunningRegistry
) -> None:
    push_image(registry.address, "pulled")
    image = f"{registry.address}/pulled:1"
    require(tmp_path, "p384")
    settings = RegistrySettings(signature_policy=tmp_path / "policy.toml")
    with pytest.raises(SignatureMissing):
        pull(image, layout, settings)
    push_signature(registry.address, "pulled", parts("p256", "bundle"), tagged=False)
    with pytest.raises(SignatureUntrusted):
        pull(image, layout, settings)
    push_signature(registry.address, "pulled", parts("p384", "simple"), tagged=True)
    assert pull(image, layout, settings).signer == "p384"
    assert pull(image, layout, settings).signer == "p384"


def test_a_registry_that_is_away_is_not_said_to_be_without_signatures(tmp_path: Path, layout: OciLayout) -> None:
    reference = Reference.parse(f"127.0.0.1:{free_port()}/x:1")
    with open_sources(reference, RegistrySettings(max_attempts=1)) as sources, pytest.raises(RegistryUnreachable):
        check(reference, DIGEST, layout, require(tmp_path, "p256"), sources)


def _flip_signature(bundle: bytes) -> bytes:
    """The bundle with another byte in its signature."""
    at = bundle.index(b'"sig":"') + 40
    return bundle[:at] + (b"A" if bundle[at : at + 1] != b"A" else b"B") + bundle[at + 1 :]
