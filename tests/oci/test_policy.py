"""The signature policy: what is understood, what is refused, and which rule decides."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.oci.errors import InvalidPolicy
from proplet.oci.policy import Policy, Rule, load_policy, matches, parse_policy
from tests.support.signatures import vector

KEYS = '[keys.release]\nfile = "release.pub"\n[keys.old]\nfile = "old.pub"\nnot_after = 2027-01-01T00:00:00Z\n'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "release.pub").write_bytes(vector("p256", "key.pub"))
    (tmp_path / "old.pub").write_bytes(vector("rsa2048", "key.pub"))
    (tmp_path / "certificate.pem").write_bytes(vector("p256", "valid.pem"))
    return tmp_path


def policy(directory: Path, text: str, *, signed_only: bool = False) -> Policy:
    file = directory / "policy.toml"
    file.write_text(text)
    return load_policy(file, signed_only=signed_only)


def test_the_example_of_the_documentation_is_understood(directory: Path) -> None:
    import proplet.oci.policy

    text = re.search(r"::\n\n(.*?)\n\nIn patterns", str(proplet.oci.policy.__doc__), re.DOTALL)
    assert text is not None
    found = policy(directory, text[1])
    assert found.default.rule is Rule.REQUIRE
    decision = found.decide("ghcr.io/org/module")
    assert ([key.name for key in decision.keys], decision.signed_as) == (["release", "old"], "same")
    assert found.decide("ghcr.io/org/legacy").rule is Rule.ALLOW


def test_without_a_policy_everything_is_allowed_and_nobody_has_decided_that() -> None:
    decision = load_policy(None).decide("docker.io/library/x")
    assert (decision.rule, decision.stated) == (Rule.ALLOW, False)


def test_signed_only_needs_keys_and_then_asks_for_them_where_nothing_else_is_said(directory: Path) -> None:
    with pytest.raises(InvalidPolicy, match="signed_only"):
        load_policy(None, signed_only=True)
    with pytest.raises(InvalidPolicy, match="signed_only"):
        policy(directory, "", signed_only=True)
    text = f'default = "allow"\n{KEYS}[repositories."ghcr.io/free/*"]\nrule = "allow"\n'
    found = policy(directory, text, signed_only=True)
    assert len(found.decide("ghcr.io/org/x").keys) == 2
    assert found.decide("ghcr.io/free/x").rule is Rule.ALLOW
    assert policy(directory, f'default = "deny"\n{KEYS}', signed_only=True).default.rule is Rule.DENY


def test_the_most_specific_pattern_decides_and_of_equals_the_strictest(directory: Path) -> None:
    rules = {
        "*": "deny", "ghcr.io/*": "allow", "ghcr.io/org/*": "require", "ghcr.io/org/tool?": "deny",
        "ghcr.io/org/tool1": "allow", "ghcr.io/*/x": "allow", "ghcr.io/x/*": "deny",
    }  # fmt: skip
    text = KEYS + "".join(f'[repositories."{pattern}"]\nrule = "{rule}"\n' for pattern, rule in rules.items())
    found = policy(directory, text)
    for name, rule in {
        "docker.io/library/x": "deny", "ghcr.io/other": "allow", "ghcr.io/org/a/b": "require",
        "ghcr.io/org/tool2": "deny", "ghcr.io/org/tool1": "allow", "ghcr.io/x/x": "deny",
    }.items():  # fmt: skip
        assert found.decide(name).rule == rule, name


def test_brackets_of_an_ipv6_registry_are_no_wildcards() -> None:
    assert matches("[::1]:5000/*", "[::1]:5000/org/x")
    assert not matches("[::1]:5000/*", "1:5000/org/x")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("defualt = 'deny'", "unknown key 'defualt'"),
        ("default = 'none'", "default"),
        ("default = 1", "default"),
        ("default = 'require'", "there is no key"),
        ("x = [\n]]", "line 2"),
        ("keys = ['a']", r"\[keys"),
        ('[keys.a]\nfile = "nowhere.pub"', "nowhere.pub: No such file"),
        ('[keys.a]\nfile = "policy.toml"', "no public key"),
        ('[keys.a]\nfile = "release.pub"\nnot_after = 2027-01-01T00:00:00', "zone"),
        ('[keys.a]\nfile = "release.pub"\nnotafter = 1', "unknown key 'notafter'"),
        ('[keys."a b"]\nfile = "release.pub"', "name"),
        ('[repositories."ghcr.io/x"]', "rule is missing"),
        ('[repositories."ghcr.io/x"]\nrule = "require"', "no key"),
        ('[repositories."ghcr.io/x"]\nrule = "allow"\nkeys = []', "only with"),
        ('[repositories."ghcr.io/X"]\nrule = "deny"', "lower case"),
        ('[repositories."nginx"]\nrule = "deny"', "registry/repository"),
        ('[repositories."docker.io/nginx"]\nrule = "deny"', "docker.io/library/nginx"),
        ('[repositories."ghcr.io/x:1"]\nrule = "deny"', "tag"),
        ('[repositories."oci://ghcr.io/x"]\nrule = "deny"', "scheme"),
        (KEYS + '[repositories."ghcr.io/x"]\nrule = "require"\nkeys = ["none"]', "there is: release, old"),
        (KEYS + '[repositories."ghcr.io/x"]\nrule = "require"\nthreshold = 3', "from 1 to 2"),
        (KEYS + '[repositories."ghcr.io/x"]\nrule = "require"\nthreshold = true', "threshold"),
        (KEYS + '[repositories."ghcr.io/x"]\nrule = "require"\nsigned_as = 1', "signed_as"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(directory: Path, text: str, what: str) -> None:
    with pytest.raises(InvalidPolicy, match=what) as caught:
        policy(directory, text)
    assert "policy.toml" in str(caught.value)


def test_a_policy_that_is_not_there_is_no_policy_that_allows(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match="No such file"):
        load_policy(tmp_path / "policy.toml")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_policy_or_refused_as_one(raw: bytes) -> None:
    with contextlib.suppress(InvalidPolicy):
        parse_policy(raw, Path("/nowhere/policy.toml"))


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_patterns_mean_what_a_regular_expression_says(pattern: str, name: str) -> None:
    expression = pattern.replace("*", ".*").replace("?", ".")
    assert matches(pattern, name) == (re.fullmatch(expression, name) is not None)


def test_no_pattern_is_slow() -> None:
    assert not matches("*a" * 200 + "b", "a" * 2000)


@pytest.mark.parametrize("written", ["ghcr.io/org/*", "ghcr.io:443/org/*", "ghcr.io/org/app", "ghcr.io:443/org/app"])
def test_a_rule_holds_with_and_without_the_port_of_tls(directory: Path, written: str) -> None:
    found = policy(directory, f'default = "allow"\n[repositories."{written}"]\nrule = "deny"\n')
    assert found.decide("ghcr.io:443/org/app").rule is Rule.DENY
    assert found.decide("ghcr.io/org/app").rule is Rule.DENY
    assert found.decide("ghcr.io:444/org/app").rule is Rule.ALLOW


def test_a_rule_for_a_url_is_not_got_round_by_escapes_or_by_what_it_asks_for(directory: Path) -> None:
    rules = {
        "https://h/*": "allow", "https://h/private/*": "deny", "https://h/x.wasm": "deny",
        "https://h/get?file=*": "allow", "https://h/get": "deny",
    }  # fmt: skip
    found = policy(directory, "".join(f'[repositories."{name}"]\nrule = "{rule}"\n' for name, rule in rules.items()))
    for url, rule in {
        "https://h/private%2Fx": "deny", "https://h/%2Fprivate/x": "deny", "https://h/x.wasm?": "deny",
        "https://h/x.wasm?a=b": "deny", "https://h/get?file=x": "allow", "https://h/a%2Fx?b": "allow",
    }.items():  # fmt: skip
        assert found.decide(url).rule == rule, url
    narrow = policy(directory, 'default = "deny"\n[repositories."https://h/get"]\nrule = "allow"\n')
    assert narrow.decide("https://h/get?file=other").rule is Rule.DENY
