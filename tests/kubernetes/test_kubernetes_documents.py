"""Patches name what differs, no more and no less."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager.kubernetes_errors import UnreadableError
from proplet.manager.manifest import GROUPS, status_to_manifest, to_manifest
from proplet.manager.model import Kind, Resource, TaskStatus
from proplet.manager.phases import Phase
from proplet.manager.store_kubernetes_document import (
    collection_of,
    difference,
    new_object,
    put_patch,
    read,
    status_write,
    version_of,
)
from tests.manager_store.contract import FULL_PROPLET, FULL_TASK, task
from tests.manifests import strategies

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
    assert status_write(found, found, 1.0) is None


def answered(current: Resource, patch: dict[str, Any], **theirs: Any) -> dict[str, Any]:
    """What a server that has `current` answers to the patch; with fields of others in the status."""
    whole = merged(to_manifest(current), patch)
    status = {**whole["status"], **theirs}
    return json.loads(
        json.dumps({**whole, "status": status, "metadata": {**whole["metadata"], "resourceVersion": "8"}})
    )


PAIRS = (
    st.tuples(strategies.tasks, strategies.tasks)
    | st.tuples(strategies.proplets, strategies.proplets)
    | st.tuples(strategies.jobs, strategies.jobs)
)


@settings(max_examples=40)
@given(PAIRS)
def test_an_answer_to_the_write_of_a_status_is_what_a_reader_finds(pair: tuple[Resource, Resource]) -> None:
    collection = collection_of(pair[0].kind, GROUPS[0])
    document = to_manifest(pair[0])
    current = read({**document, "metadata": {**document["metadata"], "resourceVersion": "7"}}, collection)
    status: Any = {"status": pair[1].status}
    write = status_write(current, replace(current, **status), 1767225600.5)
    if write is not None:
        answer = answered(current, write.patch)
        assert write.read(answer, collection) == read(answer, collection)


def test_an_answer_that_is_not_what_was_written_is_read() -> None:
    collection = collection_of(Kind.TASK, GROUPS[0])
    current = replace(FULL_TASK, meta=replace(FULL_TASK.meta, version=7))
    write = status_write(current, replace(current, status=TaskStatus(Phase.COMPLETED, results="42")), 1767225600.5)
    assert write is not None
    as_written = write.read(answered(current, write.patch), collection)
    assert as_written.status is write.wanted.status
    changed = write.read(answered(current, write.patch, results="43", newer=1), collection)
    assert changed.status == TaskStatus(Phase.COMPLETED, results="43")
    assert changed.meta == as_written.meta
    with pytest.raises(UnreadableError, match=r"status\.phase"):
        write.read(answered(current, write.patch, phase=5), collection)


def test_plurals_are_those_of_the_definitions() -> None:
    plurals = {kind: collection_of(kind, GROUPS[0]).plural for kind in Kind}
    assert plurals == {
        Kind.TASK: "tasks",
        Kind.PROPLET: "proplets",
        Kind.JOB: "propellerjobs",
        Kind.FEDERATED_JOB: "federatedjobs",
        Kind.ROUND: "trainingrounds",
    }
