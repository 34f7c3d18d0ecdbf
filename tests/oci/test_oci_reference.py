"""Image references: what they mean, that they survive being written, and what is said about wrong ones."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidReference
from proplet.oci.reference import Reference, WebReference, parse_image, split_host_port

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


# The grammar of the distribution project's reference package, written down again: domain, path, tag and digest.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_GRAMMAR = re.compile(
    rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,127}})?"
    r"(?:@(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?",
    re.ASCII,
)
WORD = st.text("abcXYZ019-._", min_size=1, max_size=5)
DOMAIN = st.builds(
    lambda host, port: f"{host}{port}",
    st.lists(WORD, min_size=1, max_size=3).map(".".join) | st.text("0123456789abf:", max_size=8).map("[{}]".format),
    st.just("") | st.integers(0, 70000).map(":{}".format),
)
WRITTEN = st.builds(
    lambda domain, path, tag, digest: f"{domain}{path}{tag}{digest}",
    st.just("") | DOMAIN.map("{}/".format),
    st.lists(WORD | COMPONENT, min_size=1, max_size=3).map("/".join),
    st.just("") | WORD.map(":{}".format),
    st.just("") | DIGEST.map("@{}".format),
)
STRICTER = ("port", "IPv6", "longer", "lower case", "a host name")  # than the grammar: what no registry can be called


@given(WRITTEN)
def test_what_is_read_is_what_the_grammar_allows(text: str) -> None:
    allowed = _GRAMMAR.fullmatch(text) is not None
    try:
        reference = Reference.parse(text)
    except InvalidReference as error:
        assert not allowed or any(word in str(error) for word in STRICTER)  # noqa: PT017
    else:
        assert allowed
        assert Reference.parse(str(reference)) == reference


HOST_NAME = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,5}){1,2}", fullmatch=True)
URL_PATH = st.text("abcXYZ019-._~/?&=+", max_size=40).filter(
    lambda path: (parts := path.partition("?")[0].split("/")) and not {".", ".."} & set(parts) and "" not in parts[:-1]
)


@given(HOST_NAME, PORT, URL_PATH, st.none() | DIGEST)
def test_a_url_is_written_and_read_back(host: str, port: int | None, path: str, digest: Digest | None) -> None:
    registry = host if port is None else f"{host}:{port}"
    fragment = f"#{digest.algorithm}={digest.hex}" if digest else ""
    found = parse_image(f"HTTPS://{registry.upper()}/{path}{fragment}")
    assert found == WebReference(f"https://{registry}/{path}", registry, digest)
    assert parse_image(str(found)) == found
    assert "#" not in found.store_name


@given(st.text(max_size=40) | st.text("aZ0.:/@[]-_ ?#=\\\n", max_size=40))
def test_no_text_behind_https_breaks_the_parser(text: str) -> None:
    with suppress(InvalidReference):
        found = WebReference.parse(f"https://{text}")
        assert WebReference.parse(str(found)) == found
        assert found.url.startswith(f"https://{found.registry}/")
        assert not set(found.registry) & set("/@?#\\")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("https://", "module URL"),
        ("https:///a.wasm", "host"),
        ("https://user:secret@host/a.wasm", "user name"),
        ("https://host:0/a.wasm", "port"),
        ("https://ho st/a.wasm", "ASCII"),
        ("https://host/\u00e4.wasm", "ASCII"),
        ("https://host/a.wasm#", "sha256="),
        ("https://host/a.wasm#top", "sha256="),
        ("https://host/a.wasm#sha256=abc", "64 hex"),
        (f"https://host/a.wasm#md5={HEX}", "md5"),
        ("https://host\\@other/a.wasm", "user name"),
        ("https://host/a\\b.wasm", "backslash"),
        ("https://host/" + "a" * 2000, "up to 2000"),
    ],
)
def test_a_url_that_is_none_is_said_to_be_so(text: str, part: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_image(text)
    assert part in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://h:443/x.wasm", "https://h/x.wasm"),
        ("https://h/%70rivate/%7Ex.wasm", "https://h/private/~x.wasm"),
        ("https://h/a%2fb.wasm", "https://h/a%2Fb.wasm"),
    ],
)
def test_one_place_has_one_url(written: str, meant: str) -> None:
    assert WebReference.parse(written).url == meant


def test_no_place_has_a_second_name_that_rules_do_not_fit() -> None:
    for registry in ("registry-1.docker.io:443", "index.docker.io:443", "docker.io:443"):
        assert Reference.parse(f"{registry}/library/x").name == "docker.io/library/x"
    for text, what in {
        "ghcr.io:0443/org/x": "zeros",
        "https://h:0443/x": "zeros",
        "https://h//private/x": "empty",
    }.items():
        with pytest.raises(InvalidReference, match=what):
            parse_image(text)


@pytest.mark.parametrize(
    "path", ["public/../private/x.wasm", "public/%2e%2e/private/x.wasm", "./x.wasm", "a/.%2E", "a/..%2Fb", "a/%2e.%5cb"]
)
def test_a_url_cannot_walk_out_of_what_a_rule_names(path: str) -> None:
    with pytest.raises(InvalidReference, match=r"'\.\.'"):
        WebReference.parse(f"https://h/{path}")
