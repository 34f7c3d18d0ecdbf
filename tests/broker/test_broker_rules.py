"""Topic rules and credentials."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.broker import CredentialsError, Identity, Role, load_or_create_identities, rules_of
from proplet.manager.broker_rules import CREDENTIALS_FILE, filter_contains, filter_matches, is_filter

LEVELS = st.sampled_from(["a", "b", "", "$x"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(st.one_of(LEVELS, st.just("+")), min_size=0, max_size=4), st.booleans())
    .map(lambda parts: "/".join([*parts[0], *(["#"] if parts[1] else [])]))
    .filter(bool)
)


@given(FILTERS, FILTERS, TOPICS)
def test_a_contained_filter_matches_nothing_that_the_container_does_not(outer: str, inner: str, topic: str) -> None:
    if filter_contains(outer, inner) and filter_matches(inner, topic):
        assert filter_matches(outer, topic)


@given(FILTERS)
def test_every_filter_contains_itself(name: str) -> None:
    assert is_filter(name)
    assert filter_contains(name, name)


@pytest.mark.parametrize(
    ("name", "topic", "matches"),
    [
        ("a/+/c", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a", False),
        ("+", "/a", False),
        ("+/+", "/a", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a", "a/b", False),
    ],
)
def test_filters_match_as_the_specification_says(name: str, topic: str, matches: bool) -> None:
    assert filter_matches(name, topic) is matches


@pytest.mark.parametrize("name", ["", "a#", "a/#/b", "a+/b", "#a", "a\0b"])
def test_what_is_no_filter(name: str) -> None:
    assert not is_filter(name)


def test_a_plus_does_not_contain_a_hash() -> None:
    assert not filter_contains("devices/+", "devices/#")
    assert not filter_contains("+", "#")


@pytest.mark.parametrize("name", ["a:b", " a", "a\n", "a/b", "a+", "#", "", "a\x7f"])
def test_a_name_that_the_brokers_files_would_misread_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        Identity(name, "secret", Role.PROPLET)


def test_a_will_counts_as_publishing() -> None:
    rules = rules_of(Identity("p", "s", Role.PROPLET), "d", "c")
    assert rules.may_publish("m/d/c/c/control/proplet/alive")
    assert not rules.may_publish("m/d/c/other/control/proplet/alive")


def test_credentials_are_made_once_and_only_we_can_read_them(tmp_path: Path) -> None:
    first = load_or_create_identities(tmp_path, ["p1"], "boss")
    assert [(i.username, i.role) for i in first] == [("boss", Role.MANAGER), ("p1", Role.PROPLET)]
    assert (tmp_path / CREDENTIALS_FILE).stat().st_mode & 0o777 == 0o600
    assert all(len(i.password) >= 43 for i in first)
    assert first[0].password not in repr(first)
    second = load_or_create_identities(tmp_path, ["p1", "p2"], "boss")
    assert second[:2] == first
    assert load_or_create_identities(tmp_path, [], "boss") == second
    assert [path.name for path in tmp_path.iterdir()] == [CREDENTIALS_FILE]


def test_an_id_cannot_be_proplet_and_manager(tmp_path: Path) -> None:
    load_or_create_identities(tmp_path, ["p1"], "boss")
    with pytest.raises(CredentialsError, match="choose another id"):
        load_or_create_identities(tmp_path, ["boss"], "boss")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"identities": [{"username": "x"}]}'])
def test_a_damaged_file_of_credentials_is_an_error_and_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CREDENTIALS_FILE).write_bytes(content)
    with pytest.raises(CredentialsError, match="restore the file"):
        load_or_create_identities(tmp_path, [], "boss")
    assert (tmp_path / CREDENTIALS_FILE).read_bytes() == content


def test_a_state_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CredentialsError, match="cannot be"):
        load_or_create_identities(tmp_path / "file" / "state", [], "boss")


def test_a_proplet_asks_for_images_in_its_own_name_only() -> None:
    rules = rules_of(Identity("p", "s", Role.PROPLET), "d", "c")
    assert rules.may_publish("m/d/c/c/registry/proplet/p")
    assert rules.may_subscribe("m/d/c/c/registry/server/p")
    assert rules.may_publish("m/d/c/c/registry/proplet")
    for other in ("registry/proplet/q", "registry/server", "registry/server/p"):
        assert not rules.may_publish(f"m/d/c/c/{other}")
    for other in ("registry/server/q", "registry/server/+", "registry/proplet", "registry/proplet/p"):
        assert not rules.may_subscribe(f"m/d/c/c/{other}")
