"""What a request to the mirror is about: paths, names, ranges, pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.mirror_names import (
    Naming,
    NoSuchBytesError,
    NoSuchNameError,
    Span,
    Target,
    What,
    page,
    parse_path,
    parse_range,
)
from proplet.oci.digest import Digest

DIGEST = Digest.of(b"something")
OWN = frozenset({"localhost", "127.0.0.1:5000", "hub:5000"})


def test_every_endpoint_is_told_from_the_others() -> None:
    assert parse_path("/v2/").what is What.BASE
    assert parse_path("/v2").what is What.BASE
    assert parse_path("/v2/_catalog").what is What.CATALOG
    assert parse_path("/v2/a/b/manifests/1.0") == Target(What.MANIFEST, "a/b", tag="1.0")
    assert parse_path(f"/v2/a/b/manifests/{DIGEST}") == Target(What.MANIFEST, "a/b", digest=DIGEST)
    assert parse_path(f"/v2/ghcr.io/a/b/blobs/{DIGEST}") == Target(What.BLOB, "ghcr.io/a/b", digest=DIGEST)
    assert parse_path("/v2/a/tags/list") == Target(What.TAGS, "a")
    assert parse_path(f"/v2/a/referrers/{DIGEST}") == Target(What.REFERRERS, "a", digest=DIGEST)
    # These words may be part of a repository's name.
    assert parse_path("/v2/blobs/tags/manifests/list") == Target(What.MANIFEST, "blobs/tags", tag="list")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", "NAME_UNKNOWN"),
        ("/v1/_ping", "NAME_UNKNOWN"),
        ("/v2x/a/manifests/1", "NAME_UNKNOWN"),
        ("/v2/a/b", "NAME_UNKNOWN"),
        ("/v2/a/blobs/uploads/", "NAME_UNKNOWN"),
        ("/v2/a/blobs/sha256:12", "DIGEST_INVALID"),
        (f"/v2/a/blobs/sha256:{'../' * 21}a", "NAME_UNKNOWN"),
        (f"/v2/a/blobs/sha256:{'A' * 64}", "DIGEST_INVALID"),
        ("/v2/a/manifests/..", "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/-x", "MANIFEST_UNKNOWN"),
        ("/v2/" + "a/" * 600 + "manifests/1", "NAME_UNKNOWN"),
    ],
)
def test_what_is_no_endpoint_says_why(path: str, code: str) -> None:
    with pytest.raises(NoSuchNameError) as refused:
        parse_path(path)
    assert refused.value.code == code


@given(st.text(max_size=200) | st.from_regex(r"/v2/[a-z./%:@~-]*/(manifests|blobs|tags|referrers)/[a-z0-9:./-]*"))
def test_any_path_is_a_target_or_refused(path: str) -> None:
    try:
        target = parse_path(path)
    except NoSuchNameError:
        return
    if target.what in {What.MANIFEST, What.BLOB, What.TAGS, What.REFERRERS}:
        assert path.startswith(f"/v2/{target.name}/")


NAMING = Naming(OWN, ("ghcr.io/org/*", "docker.io/library/*"))


@pytest.mark.parametrize(
    ("name", "namespace", "stored", "meant"),
    [
        ("ghcr.io/org/x", None, ["ghcr.io/org/x"], "ghcr.io/org/x"),
        ("ghcr.io/org/x", None, [], "ghcr.io/org/x"),  # pulled
        ("docker.io/library/x", None, ["docker.io/library/x"], "docker.io/library/x"),
        ("docker.io/x", None, ["docker.io/library/x"], "docker.io/library/x"),
        ("org/x", "ghcr.io", ["docker.io/org/x"], "ghcr.io/org/x"),
        ("x", "docker.io", [], "docker.io/library/x"),
        ("x", "registry-1.docker.io", [], "docker.io/library/x"),
        ("x", "lan:5000", [], "lan:5000/x"),
        ("team/x", None, ["quay.io/team/x"], "quay.io/team/x"),
        ("demo/x", None, ["quay.io/demo/x", "localhost/demo/x"], "localhost/demo/x"),
        ("demo/x", None, ["quay.io/demo/x", "hub:5000/demo/x"], "hub:5000/demo/x"),
        ("library/x", None, ["quay.io/library/x"], "docker.io/library/x"),  # as Docker Hub's mirrors are asked
        ("nothing/x", None, [], "localhost/nothing/x"),
    ],
)
def test_a_name_means_one_repository(name: str, namespace: str | None, stored: list[str], meant: str) -> None:
    assert NAMING.meant(name, namespace, stored) == meant


def test_a_name_that_two_registries_have_is_none() -> None:
    with pytest.raises(NoSuchNameError, match="2 repositories are called team/x"):
        NAMING.meant("team/x", None, ["quay.io/team/x", "other.example/team/x"])


@pytest.mark.parametrize("name", ["../x", "a//b", "A/b", "a/..", ".", "a@b", "ghcr.io/a:b", "a:b", "x" * 300, "é"])
def test_a_name_outside_the_grammar_is_invalid(name: str) -> None:
    with pytest.raises(NoSuchNameError) as refused:
        NAMING.meant(name, None, [])
    assert refused.value.code == "NAME_INVALID"


@pytest.mark.parametrize("namespace", ["", "x", "../..", "ghcr.io/..", "ghcr.io@x", "a b.c", "https://ghcr.io"])
def test_a_namespace_must_be_a_registry(namespace: str) -> None:
    with pytest.raises(NoSuchNameError) as refused:
        NAMING.meant("org/x", namespace, [])
    assert refused.value.code == "NAME_INVALID"


@given(st.text(max_size=60), st.none() | st.text(max_size=30))
def test_any_name_is_a_repository_or_refused(name: str, namespace: str | None) -> None:
    try:
        meant = NAMING.meant(name, namespace, ["ghcr.io/org/x", "localhost/x"])
    except NoSuchNameError:
        return
    assert ".." not in meant.split("/")
    assert "/" in meant


def test_without_the_password_only_what_is_meant_for_everybody_is_served() -> None:
    assert not NAMING.served("private.example/secret", known=False)
    assert NAMING.served("private.example/secret", known=True)
    assert NAMING.served("localhost/demo", known=False)
    assert NAMING.served("ghcr.io/org/x", known=False)
    assert not NAMING.served("ghcr.io/organisation/x", known=False)


def test_the_mirror_never_pulls_from_itself() -> None:
    naming = Naming(OWN, ("*",))
    assert naming.pulled("ghcr.io/a/b")
    assert not naming.pulled("localhost/a/b")
    assert not naming.pulled("127.0.0.1:5000/a/b")


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-", Span(0, 9)),
        ("bytes=3-5", Span(3, 5)),
        ("bytes=9-100", Span(9, 9)),
        ("bytes=-4", Span(6, 9)),
        ("bytes=-40", Span(0, 9)),
        ("bytes=-", None),
        ("bytes=5-3", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=٣-", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_a_range_is_bytes_of_the_blob_or_all_of_it(header: str | None, span: Span | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_behind_the_end_is_none(header: str, size: int) -> None:
    with pytest.raises(NoSuchBytesError):
        parse_range(header, size)


@given(st.text(max_size=30) | st.from_regex(r"bytes=[0-9]{0,3}-[0-9]{0,3}", fullmatch=True), st.integers(0, 300))
def test_any_range_stays_inside_the_blob(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except NoSuchBytesError:
        return
    assert span is None or 0 <= span.first <= span.last < size


NAMES = st.lists(st.from_regex(r"[a-z]{1,4}", fullmatch=True), unique=True).map(sorted)


@given(NAMES, st.integers(1, 5))
def test_pages_together_are_all_names(names: list[str], count: int) -> None:
    seen: list[str] = []
    further = True
    while further:
        shown, further = page(names, str(count), seen[-1] if seen else None)
        assert len(shown) <= count
        seen += shown
    assert seen == names


@pytest.mark.parametrize("count", ["-1", "x", "", "1e3", "1" * 50, "²"])
def test_a_page_size_that_is_no_number_is_refused(count: str) -> None:
    with pytest.raises(NoSuchNameError) as refused:
        page(["a"], count, None)
    assert refused.value.code == "PAGINATION_NUMBER_INVALID"
