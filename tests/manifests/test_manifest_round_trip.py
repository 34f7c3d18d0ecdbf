"""Nothing is lost or changed between a resource, its manifest, its stored form and its text."""

import contextlib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager import store_codec
from proplet.manager.manifest import ManifestError, from_manifest, parse_documents, to_manifest
from proplet.manager.manifest_text import TextError, documents
from proplet.manager.model import Resource, Task
from tests.manifests import strategies


@settings(max_examples=40)
@given(strategies.resources)
def test_a_resource_is_the_same_after_its_manifest(resource: Resource) -> None:
    assert from_manifest(to_manifest(resource)) == resource


@settings(max_examples=40)
@given(strategies.resources)
def test_a_manifest_is_the_same_after_json_and_yaml(resource: Resource) -> None:
    plain = json.loads(json.dumps(to_manifest(resource)))
    assert from_manifest(plain) == resource
    (from_json,) = documents(json.dumps(plain))
    assert from_json == plain
    (from_yaml,) = documents(yaml.safe_dump(plain))
    assert from_manifest(from_yaml) == resource


@settings(max_examples=40)
@given(strategies.resources)
def test_a_resource_is_the_same_after_the_stores_json(resource: Resource) -> None:
    spec = store_codec.load(store_codec.SPECS[resource.kind], store_codec.dump(resource.spec))
    status = store_codec.load(store_codec.STATUSES[resource.kind], store_codec.dump(resource.status))
    assert status == resource.status
    if isinstance(resource, Task):
        assert spec.file == b""  # kept by its digest
        resource_spec: Any = resource.spec
        assert {n: getattr(spec, n) for n in spec.__slots__ if n != "file"} == {
            n: getattr(resource_spec, n) for n in spec.__slots__ if n != "file"
        }
    else:
        assert spec == resource.spec


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "name file inputs env limits propletSelector permissions monitoringProfile metadata priority dependsOn type k8s "
    "external resources connectionConfig restartPolicy activeDeadlineSeconds resourceRequirements envSecrets".split()
)


@given(st.sampled_from(["Task", "Proplet"]), st.dictionaries(FIELDS, ANYTHING, max_size=5), ANYTHING)
def test_any_value_in_any_field_is_taken_or_refused_with_its_path(kind: str, spec: dict[str, Any], labels: Any) -> None:
    document = {
        "apiVersion": "propeller.propeller.abstractmachines.fr/v1",
        "kind": kind,
        "metadata": {"name": "x", "labels": labels},
        "spec": spec,
    }
    try:
        from_manifest(document, stored=False)
    except ManifestError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert all(problem.path.startswith(("spec", "metadata")) for problem in problems)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_taken_or_refused(text: str | bytes) -> None:
    with contextlib.suppress(ManifestError):
        parse_documents(text)


def test_what_would_crash_or_fill_a_parser_is_refused() -> None:
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))
    for text, told in (
        ("[" * 1_000_000, "nested"),
        ("a: " + "[" * 1_000_000, "nested"),
        ('{"a":' * 200_000 + "1", "nested"),
        ("- " * 100_000 + "x", "nested"),
        (chain, "nested"),
        ("a: [" + "x," * 300_000 + "]", "more than 200000 values"),
        ('{"a": [' + "1," * 300_000 + "1]}", "more than 200000 values"),
        ("x" * (64 * 2**20 + 1), "larger than 64 MiB"),
        ("a: &a [*a]", "refers to nothing"),
        ("a: " + "9" * 5000, "put it in quotes"),
    ):
        with pytest.raises(TextError, match=told):
            documents(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("off", False),
        ("~", None),
        ("1e3", "1e3"),
        ("0x1F", 31),
        ("0o17", "0o17"),
        ("1.5e+3", 1500.0),
        ("0b11", 3),
        ("08", "08"),
        ("-12", -12),
        ("1.50", 1.5),
        ("'1.50'", "1.50"),
        ('"1"', "1"),
        ("2026-01-31", "2026-01-31"),
        ("12:30:45", "12:30:45"),
        ("1.2.3", "1.2.3"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("y", "y"),
        ("| \n  a\n  b\n", "a\nb\n"),
    ],
)
def test_plain_scalars_are_read_as_kubernetes_reads_them(text: str, value: Any) -> None:
    (document,) = documents(f"a: {text}")
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


def test_a_bare_merge_key_is_refused_and_a_quoted_one_is_a_name() -> None:
    assert list(documents("env: {'<<': x}")) == [{"env": {"<<": "x"}}]
    assert list(documents("env: <<")) == [{"env": "<<"}]
    with pytest.raises(TextError, match=r"merge keys .* \(line 2\); write the fields out"):
        list(documents("a: &a {b: 1}\nc: {<<: *a}"))
