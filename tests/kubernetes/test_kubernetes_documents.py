"""Patches name what differs, no more and no less."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.kubernetes_errors import UnreadableError
from proplet.manager.manifest import GROUPS, status_to_manifest
from proplet.manager.model import Kind, Resource
from proplet.manager.store_kubernetes_document import (
    collection_of,
    difference,
    new_object,
    put_patch,
    read,
    record_patch,
    version_of,
)
from tests.manager_store.contract import FULL_PROPLET, FULL_TASK, task

LEAVES = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.lists(st.integers())
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3), max_leaves=12)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), TREES, max_size=4)


def merged(document: Any, patch: Any) -> Any:
    """RFC 7386, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


@given(OBJECTS, OBJECTS)
def test_a_difference_leads_from_one_to_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    got = merged(old, difference(old, new))
    assert got == new
    assert repr(got) == repr(merged({}, got))  # 1 and True and 1.0 are equal, and not the same


@given(OBJECTS)
def test_what_is_the_same_needs_no_patch(old: dict[str, Any]) -> None:
    assert difference(old, old) == {}


@given(OBJECTS, OBJECTS, st.dictionaries(st.sampled_from("xyz"), TREES, max_size=2))
def test_fields_of_others_are_not_touched(old: dict[str, Any], new: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert merged({**old, **theirs}, difference(old, new)) == {**new, **theirs}


@pytest.mark.parametrize("version", ["", "a", "-1", "1.5", "٣", None, 7])
def test_a_version_that_is_no_number_is_refused(version: object) -> None:
    with pytest.raises(UnreadableError, match="only decimal numbers are supported"):
        version_of({"metadata": {"resourceVersion": version}})


@pytest.mark.parametrize("resource", [FULL_TASK, FULL_PROPLET, task()], ids=["task", "proplet", "small task"])
@pytest.mark.parametrize("group", GROUPS)
def test_an_object_is_read_as_the_resource_it_was_made_of(resource: Resource, group: str) -> None:
    collection = collection_of(resource.kind, group)
    document = new_object(resource, collection)
    assert "status" not in document
    document["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    document["status"] = status_to_manifest(resource)
    found = read(document, collection)
    assert (found.spec, found.status, found.meta.version) == (resource.spec, resource.status, 7)
    assert put_patch(found, found, collection) is None
    assert record_patch(found, found, 1.0) is None


def test_plurals_are_those_of_the_definitions() -> None:
    plurals = {kind: collection_of(kind, GROUPS[0]).plural for kind in Kind}
    assert plurals == {
        Kind.TASK: "tasks",
        Kind.PROPLET: "proplets",
        Kind.JOB: "propellerjobs",
        Kind.FEDERATED_JOB: "federatedjobs",
        Kind.ROUND: "trainingrounds",
    }
