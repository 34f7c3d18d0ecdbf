"""Image references: what they mean, that they survive being written, and what is said about wrong ones."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidReference
from proplet.oci.reference import Reference, split_host_port

HEX = "c4e0c901b54c4ba8036806aaf9ba3766469dde748870ade4943c300ca5b84558"

ALNUM = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=6)
SEPARATOR = st.sampled_from([".", "_", "__", "-", "---"])
COMPONENT = st.builds(
    lambda first, rest: first + "".join(a + b for a, b in rest),
    ALNUM,
    st.lists(st.tuples(SEPARATOR, ALNUM), max_size=3),
)
REPOSITORY = st.lists(COMPONENT, min_size=2, max_size=4).map("/".join)
LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
PORT = st.none() | st.integers(1, 65535)
HOST = st.one_of(
    NAME, st.just("localhost"), st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda address: f"[{address}]")
)
REGISTRY = st.builds(lambda host, port: host if port is None else f"{host}:{port}", HOST, PORT)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
DIGEST = st.binary(max_size=4).map(Digest.of)
REFERENCES = st.builds(Reference, REGISTRY, REPOSITORY, TAG, st.none() | DIGEST) | st.builds(
    Reference, REGISTRY, REPOSITORY, st.none(), DIGEST
)


@given(REFERENCES)
def test_a_reference_is_written_and_read_back(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(f"oci://{reference}") == reference
    assert Reference.parse(reference.store_name).store_name == reference.store_name


@given(st.text(max_size=60) | st.text("aZ0.:/@[]-_ ", max_size=40))
def test_no_text_breaks_the_parser_and_what_it_accepts_is_stable(text: str) -> None:
    with suppress(InvalidReference):
        reference = Reference.parse(text)
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag"),
    [
        ("redis", "docker.io", "library/redis", "latest"),
        ("redis:7", "docker.io", "library/redis", "7"),
        ("me/app", "docker.io", "me/app", "latest"),
        ("docker.io/redis", "docker.io", "library/redis", "latest"),
        ("index.docker.io/me/app:1", "docker.io", "me/app", "1"),
        ("localhost/app", "localhost", "app", "latest"),
        ("localhost:5000/app:v1", "localhost:5000", "app", "v1"),
        ("localhost:5000", "docker.io", "library/localhost", "5000"),
        ("127.0.0.1:5000/a/b/c:v-1.2_3", "127.0.0.1:5000", "a/b/c", "v-1.2_3"),
        ("[::1]:5000/app:v1", "[::1]:5000", "app", "v1"),
        ("[2001:db8::1]/app", "[2001:db8::1]", "app", "latest"),
        ("GHCR.io/me/app", "ghcr.io", "me/app", "latest"),
        ("oci://ghcr.io/me/app:1", "ghcr.io", "me/app", "1"),
        ("ghcr.io/a__b/c---d/e.f:1", "ghcr.io", "a__b/c---d/e.f", "1"),
    ],
)
def test_what_references_mean(text: str, registry: str, repository: str, tag: str) -> None:
    assert Reference.parse(text) == Reference(registry, repository, tag)


def test_a_digest_needs_no_tag_and_decides_over_one() -> None:
    pinned = Reference.parse(f"ghcr.io/me/app@sha256:{HEX}")
    assert (pinned.tag, pinned.manifest_key) == (None, f"sha256:{HEX}")
    both = Reference.parse(f"ghcr.io/me/app:1@sha256:{HEX}")
    assert (both.tag, both.manifest_key) == ("1", f"sha256:{HEX}")
    assert both.store_name == pinned.store_name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        (" redis", "spaces"),
        ("redis\n", "spaces"),
        ("ghcr.io/Me/app", "'Me' must be lower case"),
        ("ghcr.io/me/App:1", "'App' must be lower case"),
        ("Redis", "must be lower case"),
        ("ghcr.io/me//app", "empty part"),
        ("ghcr.io/me/app/", "empty part"),
        ("ghcr.io/", "repository is empty"),
        ("ghcr.io/me/a..b", "'a..b'"),
        ("ghcr.io/me/-app", "'-app'"),
        ("ghcr.io/me/app:", "tag is empty"),
        ("ghcr.io/me/app:.1", "tag '.1'"),
        ("ghcr.io/me/app:" + "x" * 129, "tag"),
        ("ghcr.io/me/app:1:2", "tag '1:2'"),
        ("ghcr.io/me/app@", "digest"),
        ("ghcr.io/me/app@sha256:abc", "digest: a sha256 digest has 64"),
        (f"ghcr.io/me/app@sha256:{HEX.upper()}", "digest"),
        ("ghcr.io:0/me/app", "port"),
        ("ghcr.io:65536/me/app", "port"),
        ("ghcr.io:x/me/app", "port"),
        ("ghcr_io.example/me/app", "registry"),
        ("[::1/app", "registry"),
        ("[::1]x/app", "registry"),
        ("[fe80::1%eth0]/app", "registry"),
        ("https://ghcr.io/me/app", "scheme 'https'"),
        ("user:pw@ghcr.io/me/app", "digest"),
        ("ghcr.io/" + "a" * 256, "longer than 255"),
        ("ghcr.io/a/../b", "'..'"),
        ("ghcr.io/a/%2e%2e/b", "'%2e%2e'"),
        ("ghcr.io/a?x=y", "'a?x=y'"),
    ],
)
def test_the_error_names_the_part_that_is_wrong(text: str, part: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert part in str(caught.value)


def test_host_and_port_are_told_apart() -> None:
    assert split_host_port("[::1]:5000") == ("::1", 5000)
    assert split_host_port("[::1]") == ("::1", None)
    assert split_host_port("localhost:5000") == ("localhost", 5000)
    assert split_host_port("ghcr.io") == ("ghcr.io", None)
