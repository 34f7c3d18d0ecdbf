"""The custom resource definitions on a real API server: one corpus of manifests, two judges, and what a user sees."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from proplet.manager import crd, manifest, rules
from proplet.manager.manifest import GROUPS, ManifestError, from_manifest, parse_documents, to_manifest
from proplet.manager.model import WORKS, Kind, Proplet, Resource, Task
from tests.cli.command import COMMAND
from tests.manifests import strategies
from tests.manifests.test_manifest_corpus import ACCEPT, REFUSE, SAMPLES
from tests.support.kubernetes import MERGE_PATCH, ApiError, ApiServer, KubectlError, open_api_server
from tests.support.kubernetes_manager import eventually
from tests.support.kubernetes_objects import await_served

pytestmark = pytest.mark.kubernetes

OLD, NEW = GROUPS
KINDS = ("federatedjobs", "propellerjobs", "proplets", "tasks", "trainingrounds")
CRDS = Path(manifest.__file__).parent.parent / "crds"
ADDITION = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL"
# In a manifest to refuse: what only we say of it, and why the API server does not.
NODE_ONLY = "# by the node only: "
_names = count(1)

WORK = {
    "roundId": "round-1",
    "federatedJobRef": {"name": "j"},
    "experimentId": "e",
    "modelRef": "m",
    "taskWasmImage": "i",
    "kOfN": 1,
    "timeoutSeconds": 60,
}
SPECS: dict[Kind, dict[str, Any]] = {
    Kind.TASK: {"name": "main", "file": ADDITION},
    Kind.PROPLET: {"type": "external"},
    Kind.JOB: {"name": "job", "taskRefs": ["a"]},
    Kind.FEDERATED_JOB: {
        **{k: v for k, v in WORK.items() if k not in ("roundId", "federatedJobRef")},
        "participants": [{"propletId": "a"}],
        "aggregator": {"algorithm": "fedavg"},
    },
    Kind.ROUND: {**WORK, "participants": ["a"]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """A server of its own: other tests install looser definitions of the same kinds."""
    with open_api_server() as server:
        printed = subprocess.run([COMMAND, "crds", "--group=all"], capture_output=True, text=True, check=True).stdout
        server.kubectl("apply", "-f", "-", input=printed)
        for group in GROUPS:
            for kind in KINDS:
                await_served(server, f"/apis/{group}/v1/{kind}")
        server.create_namespace("lab")  # which a manifest of the corpus names
        yield server


@pytest.fixture
def space(server: ApiServer) -> str:
    """A new namespace; the server goes as a whole."""
    name = f"space-{next(_names)}"
    server.create_namespace(name)
    return name


@pytest.fixture
def home(server: ApiServer, space: str) -> Path:
    """A kubeconfig whose namespace is the new one."""
    return server.token_kubeconfig(server.admin_token, space)


def path_of(space: str, kind: str = "tasks", name: str = "", part: str = "", version: str = f"{OLD}/v1") -> str:
    return "/".join(filter(None, (f"/apis/{version}/namespaces/{space}/{kind}", name, part)))


def task(name: str = "addition", **spec: Any) -> dict[str, Any]:
    spec = {"name": "main", "file": ADDITION, **spec}
    return {"apiVersion": f"{OLD}/v1", "kind": "Task", "metadata": {"name": name}, "spec": spec}


def patch(server: ApiServer, path: str, **change: Any) -> dict[str, Any]:
    return server.call("PATCH", path, change, content_type=MERGE_PATCH)


# --- one corpus, two judges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ACCEPT, ids=lambda file: file.name)
def test_a_manifest_to_accept_is_created_and_read_back_as_it_was(server: ApiServer, home: Path, file: Path) -> None:
    # An exported one has fields of a newer version, which kubectl would rather not drop.
    exported = ["--validate=ignore"] if "exported" in file.name else []
    created = server.kubectl("create", *exported, "-o", "json", "-f", str(file), kubeconfig=home)
    stored = [from_manifest(document) for document in documents(created)]
    ours = parse_documents(file.read_text())
    assert [(r.kind, r.meta.name, without_defaults(r)) for r in stored] == [
        (r.kind, r.meta.name, without_defaults(r)) for r in ours
    ]


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The JSON documents that stand in a text one after the other."""
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        yield from document["items"] if document["kind"] == "List" else [document]
        text = text[end:]


def without_defaults(resource: Resource) -> Any:
    """Its spec without what the API server fills in and we leave open."""
    if not isinstance(resource, Proplet):
        return resource.spec
    filled = {"replicas": 1, "logLevel": "info", "mqttTimeout": "30s"}
    parts = [
        {k: v for k, v in part.items() if filled.get(k) != v} for part in (resource.spec.k8s, resource.spec.connection)
    ]
    return replace(resource.spec, k8s=parts[0], connection=parts[1])


@pytest.mark.parametrize("file", REFUSE, ids=lambda file: file.name)
def test_a_manifest_to_refuse_is_refused_unless_it_says_why_not(server: ApiServer, home: Path, file: Path) -> None:
    text = file.read_text()
    with pytest.raises(ManifestError) as ours:
        parse_documents(text)
    if NODE_ONLY in text:
        server.kubectl("create", "--dry-run=server", "-f", str(file), kubeconfig=home)
        return
    with pytest.raises(KubectlError) as theirs:
        server.kubectl("create", "--dry-run=server", "-f", str(file), kubeconfig=home)
    assert "SECRETVALUE" not in theirs.value.stderr
    assert "estimated" not in theirs.value.stderr
    if "error parsing" in theirs.value.stderr:  # by kubectl already
        return
    # For the same reason: about the same field.
    about = [re.split(r"\W", problem.path)[1] for problem in ours.value.problems if problem.path.startswith("spec.")]
    assert not about or any(field in theirs.value.stderr for field in about)


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_a_sample_is_applied_and_applied_again_without_a_change(server: ApiServer, home: Path, file: Path) -> None:
    said = server.kubectl("apply", "-f", str(file), kubeconfig=home)
    assert set(re.findall(r" (\w+)$", said, re.MULTILINE)) == {"created"}
    said = server.kubectl("apply", "-f", str(file), kubeconfig=home)
    assert set(re.findall(r" (\w+)$", said, re.MULTILINE)) == {"unchanged"}


# --- after dispatch ---------------------------------------------------------------------------------------------------

EVERYTHING = {
    "name": "main",
    "functionName": "add",
    "imageUrl": "registry.test/add:1",
    "cliArgs": ["a"],
    "inputs": ["1", 2, 3.5],
    "env": {"A": "1"},
    "propletSelector": {"propletId": "pi"},
    "workflowId": "w",
    "dependsOn": ["other"],
    "limits": {"memory": "16Mi", "cpuTime": "5s"},
}
FROZEN = {
    "name": "other",
    "functionName": "other",
    "kind": "federated",
    "imageUrl": "registry.test/other:1",
    "cliArgs": ["b"],
    "inputs": ["1", 2, 3.25],
    "env": {"A": "2"},
    "envSecrets": {"B": {"name": "secret", "key": "key"}},
    "propletSelector": {"propletId": "other"},
    "preferredPropletType": "external",
    "resourceRequirements": {"cpu": 0.5},
    "daemon": True,
    "latent": True,
    "mode": "infer",
    "monitoringProfile": {"interval": "5s"},
    "restartPolicy": "Always",
    "backoffLimit": 3,
    "activeDeadlineSeconds": 5,
    "pullPolicy": "Always",
    "limits": {"cpuTime": "6s"},
    "permissions": {"http": ["https://example.com"]},
    "encrypted": True,
    "kbsResourcePath": "a/b",
    "halStoragePath": "/x",
    "dependsOn": ["another"],
    "runIf": "failure",
    "workflowId": "v",
    "jobId": "j",
}
EDITABLE = {
    "suspend": True,
    "schedule": "*/5 * * * *",
    "timezone": "Europe/Paris",
    "concurrencyPolicy": "Forbid",
    "startingDeadlineSeconds": 5,
    "priority": 0,
    "ttlSecondsAfterFinished": 60,
    "metadata": {"note": ["anything"]},
}


@pytest.fixture
def dispatched(server: ApiServer, space: str) -> str:
    """The path of a Task that runs."""
    server.call("POST", path_of(space), {**task("one"), "spec": EVERYTHING})
    patch(server, path_of(space, name="one", part="status"), status={"phase": "running", "attempts": 1})
    return path_of(space, name="one")


@pytest.mark.parametrize("name", FROZEN)
def test_what_a_dispatched_task_runs_cannot_change(server: ApiServer, dispatched: str, name: str) -> None:
    before = from_manifest(server.call("GET", dispatched))
    with pytest.raises(ApiError, match=rf"what cannot change any more: spec\.{name}\b") as refused:
        patch(server, dispatched, spec={name: FROZEN[name]})
    assert refused.value.status == 422
    assert re.findall(r"spec\.(\w+)", str(refused.value)) == [name]
    after = from_manifest({**to_manifest(before), "spec": {**to_manifest(before)["spec"], name: FROZEN[name]}})
    assert isinstance(before, Task)
    assert isinstance(after, Task)
    assert rules.frozen_changes(before, after) == [f"spec.{name}"]


def test_a_dispatched_task_keeps_its_kind_of_module_and_its_audience(server: ApiServer, dispatched: str) -> None:
    with pytest.raises(ApiError, match=r"any more: .*spec\.imageUrl spec\.file"):
        patch(server, dispatched, spec={"imageUrl": "", "file": ADDITION})
    with pytest.raises(ApiError, match=r"any more: .*spec\.propletSelector spec\.broadcast"):
        patch(server, dispatched, spec={"propletSelector": None, "broadcast": True})


def test_every_field_of_a_task_was_tried() -> None:
    schema = crd.definition(Kind.TASK, OLD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert set(schema["properties"]["spec"]["properties"]) == set(FROZEN) | set(EDITABLE) | {
        "file",
        "broadcast",
        "isRecurring",
    }


@pytest.mark.parametrize("name", EDITABLE)
def test_when_and_how_urgently_a_dispatched_task_runs_can_change(server: ApiServer, dispatched: str, name: str) -> None:
    assert patch(server, dispatched, spec={name: EDITABLE[name]})["spec"][name] == EDITABLE[name]
    patch(server, f"{dispatched}/status", status={"phase": "completed"})
    patch(server, dispatched, spec={name: None})


def test_a_dispatched_task_may_be_applied_again_with_its_defaults_written_out(
    server: ApiServer, dispatched: str
) -> None:
    written_out = {"daemon": False, "broadcast": False, "file": "", "encrypted": False, "kbsResourcePath": "",
                   "envSecrets": {}, "kind": "standard", "priority": 50}  # fmt: skip
    patch(server, dispatched, metadata={"labels": {"a": "b"}, "finalizers": ["tests.proplet.io/x"]}, spec=written_out)
    patch(server, dispatched, metadata={"finalizers": None}, spec=dict.fromkeys(written_out))


def test_a_task_that_was_not_dispatched_may_change_and_so_may_one_that_recurs(server: ApiServer, space: str) -> None:
    server.call("POST", path_of(space), task())
    path = path_of(space, name="addition")
    patch(server, path, spec={"inputs": [1]})
    patch(server, f"{path}/status", status={"phase": "pending", "message": "no proplet matches"})
    patch(server, path, spec={"inputs": [1, 2], "isRecurring": True, "schedule": "*/5 * * * *"})
    patch(server, f"{path}/status", status={"phase": "scheduled", "attempts": 1})
    patch(server, path, spec={"inputs": [2, 2], "schedule": "*/6 * * * *"})
    patch(server, f"{path}/status", status={"phase": "completed"})
    patch(server, path, spec={"inputs": [3, 2]})
    patch(server, path, spec={"isRecurring": None})
    with pytest.raises(ApiError, match=r"any more: spec\.inputs"):
        patch(server, path, spec={"inputs": [4, 2]})


@pytest.mark.parametrize("phase", ["scheduled", "running"])
def test_the_phase_alone_says_that_a_task_was_dispatched(server: ApiServer, space: str, phase: str) -> None:
    server.call("POST", path_of(space), task())
    patch(server, path_of(space, name="addition", part="status"), status={"phase": phase})
    with pytest.raises(ApiError, match=r"spec\.inputs"):
        patch(server, path_of(space, name="addition"), spec={"inputs": [1]})


def test_who_changes_the_phase_beside_the_spec_changes_neither_of_a_dispatched_task(
    server: ApiServer, dispatched: str
) -> None:
    current = server.call("GET", dispatched)
    spec = {**current["spec"], "inputs": [7]}
    for status in ({"phase": "pending"}, {}, None):
        with pytest.raises(ApiError, match=r"any more: spec\.inputs"):
            server.call("PUT", dispatched, {**current, "spec": spec, "status": status})
    with pytest.raises(ApiError, match=r"any more: spec\.inputs"):
        server.call(
            "PUT", dispatched, {name: part for name, part in current.items() if name != "status"} | {"spec": spec}
        )
    written = server.call("PUT", f"{dispatched}/status", {**current, "spec": spec, "status": {"phase": "completed"}})
    assert written["spec"] == current["spec"]


@pytest.mark.parametrize("kind", WORKS, ids=lambda kind: kind.value)
def test_what_a_job_consists_of_cannot_change_once_it_has_started(server: ApiServer, space: str, kind: Kind) -> None:
    plural, spec = f"{kind.value.lower()}s", SPECS[kind]
    change = {"name": "other"} if kind is Kind.JOB else {"modelRef": "other"}
    body = {"apiVersion": f"{OLD}/v1", "kind": kind.value, "metadata": {"name": "x"}, "spec": spec}
    server.call("POST", path_of(space, plural), body)
    path = path_of(space, plural, "x")
    for status in ({}, {"observedGeneration": 1}):
        patch(server, f"{path}/status", status=status)
        patch(server, path, spec=change)
        patch(server, path, spec=spec)
    patch(server, f"{path}/status", status={"startTime": "2026-01-01T00:00:00Z"})
    patch(server, path, spec=spec, metadata={"annotations": {"note": "any"}})
    with pytest.raises(ApiError, match="has started: what it consists of cannot change"):
        patch(server, path, spec=change)
    before = server.call("GET", path)
    assert rules.frozen(from_manifest(before), from_manifest({**before, "spec": spec | change})) != []
    patch(server, f"{path}/status", status={"phase": "Running", "startTime": None})
    with pytest.raises(ApiError, match="has started: what it consists of cannot change"):
        patch(server, path, spec=change)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_inputs_are_kept_as_they_are_written(server: ApiServer, space: str) -> None:
    inputs = [10, -1, 1.5, 1e-9, True, "007", "18446744073709551616", 2**63 - 1, -(2**63), ""]
    server.call("POST", path_of(space), task(inputs=inputs))
    assert server.call("GET", path_of(space, name="addition"))["spec"]["inputs"] == inputs
    for bad in (2**63, 2**64, -(2**64), None, {}, [], [1], {"a": 1}):
        with pytest.raises(ApiError, match=r"spec"):
            server.call("POST", path_of(space), task("bad", inputs=[bad]))


def test_a_priority_of_zero_is_kept_and_defaults_are_filled_in(server: ApiServer, space: str) -> None:
    given_zero = server.call("POST", path_of(space), task("zero", priority=0))
    assert given_zero["spec"]["priority"] == 0
    spec = server.call("POST", path_of(space), task())["spec"]
    assert (spec["kind"], spec["preferredPropletType"], spec["priority"]) == ("standard", "any", 50)
    status = patch(server, path_of(space, name="addition", part="status"), status={"attempts": 0})["status"]
    assert status["phase"] == "pending"


@pytest.mark.parametrize("field", ["held", "Name", "image_url"])
def test_a_field_that_is_not_declared_is_refused(server: ApiServer, home: Path, field: str) -> None:
    with pytest.raises(KubectlError, match=rf'unknown field "spec\.{field}"'):
        server.kubectl("create", "-f", "-", input=json.dumps(task(**{field: "x"})), kubeconfig=home)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_every_status_that_is_written_is_kept_whole(server: ApiServer, kind: Kind) -> None:
    space = f"space-{next(_names)}"
    server.create_namespace(space)
    plural = f"{kind.value.lower()}s"
    body = {"apiVersion": f"{OLD}/v1", "kind": kind.value, "metadata": {"name": "x"}, "spec": SPECS[kind]}
    server.call("POST", path_of(space, plural), body)
    path = path_of(space, plural, "x")
    of_kind = {
        Kind.TASK: strategies.tasks,
        Kind.PROPLET: strategies.proplets,
        Kind.JOB: strategies.jobs,
        Kind.FEDERATED_JOB: strategies.federated_jobs,
        Kind.ROUND: strategies.rounds,
    }[kind]

    @settings(max_examples=25, derandomize=True)
    @given(of_kind)
    def kept(resource: Resource) -> None:
        types = [condition.type for condition in resource.status.conditions]
        if len(set(types)) < len(types):  # no part of ours writes the same condition twice
            return
        current = server.call("GET", path)
        current["status"] = to_manifest(resource)["status"]
        server.call("PUT", f"{path}/status", current)
        found = server.call("GET", path)
        assert found["spec"] == current["spec"]
        assert numbers_alike(found["status"]) == numbers_alike(json.loads(json.dumps(current["status"])))
        from_manifest(found)

    kept()


def numbers_alike(value: Any) -> Any:
    """JSON does not tell 2.0 from 2, and who writes it may choose."""
    if isinstance(value, dict):
        return {key: numbers_alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers_alike(item) for item in value]
    return float(value) if type(value) is int and abs(value) > 2**53 else value


def test_the_same_condition_twice_is_refused(server: ApiServer, space: str) -> None:
    server.call("POST", path_of(space), task())
    twice = [{"type": "Started", "status": "True"}] * 2
    with pytest.raises(ApiError, match="Duplicate value"):
        patch(server, path_of(space, name="addition", part="status"), status={"conditions": twice})


def test_results_of_any_form_are_kept(server: ApiServer, space: str) -> None:
    server.call("POST", path_of(space), task())
    for results in ("42", 42, [1, {"a": None}], {"deep": {"er": 1.5}}, True):
        current = server.call("GET", path_of(space, name="addition"))
        current["status"] = {"results": results}
        found = server.call("PUT", path_of(space, name="addition", part="status"), current)
        assert found["status"]["results"] == results


# --- what a user sees -------------------------------------------------------------------------------------------------


def test_the_definitions_are_applied_in_the_tutorials_order_and_unchanged_when_again(server: ApiServer) -> None:
    said = server.kubectl("apply", "-f", str(CRDS / "abstractmachines.fr")).splitlines()
    assert said == [f"customresourcedefinition.apiextensions.k8s.io/{kind}.{OLD} unchanged" for kind in KINDS]


def test_both_groups_are_served_side_by_side(server: ApiServer, space: str, home: Path) -> None:
    for group in GROUPS:
        server.call("POST", path_of(space, version=f"{group}/v1"), {**task(), "apiVersion": f"{group}/v1"})
        assert "addition" in server.kubectl("get", f"tasks.{group}", kubeconfig=home)
        names = server.kubectl("api-resources", f"--api-group={group}", "--no-headers").splitlines()
        assert [line.split()[0] for line in names] == list(KINDS)
    server.call("DELETE", path_of(space, name="addition", version=f"{OLD}/v1"))
    assert len(server.call("GET", path_of(space, version=f"{NEW}/v1"))["items"]) == 1


def test_the_kinds_of_learning_are_served_in_both_versions(server: ApiServer, space: str, home: Path) -> None:
    for kind in (Kind.FEDERATED_JOB, Kind.ROUND):
        plural = f"{kind.value.lower()}s"
        for name, version in (("older", f"{OLD}/v1alpha1"), ("newer", f"{OLD}/v1")):
            body = {"apiVersion": version, "kind": kind.value, "metadata": {"name": name}, "spec": SPECS[kind]}
            server.call("POST", path_of(space, plural, version=version), body)
        for version in ("v1", "v1alpha1"):
            listed = server.kubectl("get", f"{plural}.{version}.{OLD}", "-o", "name", kubeconfig=home).split()
            assert [name.rpartition("/")[2] for name in listed] == ["newer", "older"]
            found = server.call("GET", path_of(space, plural, "older", version=f"{OLD}/{version}"))
            assert from_manifest(found).spec == from_manifest({**found, "apiVersion": f"{OLD}/v1"}).spec


HEADERS = {
    "tasks": "NAME PHASE MODE PROPLET START TIME FINISH TIME PREFERRED TYPE AGE",
    "proplets": "NAME TYPE PHASE READY TASKS REPLICAS LAST SEEN AGE",
    "propellerjobs": "NAME PHASE MODE TASKS COMPLETED FAILED AGE",
    "federatedjobs": "NAME PHASE CURRENT ROUND COMPLETED ROUNDS AGE",
    "trainingrounds": "NAME PHASE JOB UPDATES REQUIRED AGE",
}


def test_tables_have_the_tutorials_columns(server: ApiServer, space: str, home: Path) -> None:
    for kind, spec in SPECS.items():
        body = {"apiVersion": f"{OLD}/v1", "kind": kind.value, "metadata": {"name": "x"}, "spec": spec}
        server.call("POST", path_of(space, f"{kind.value.lower()}s"), body)
    for kind, header in HEADERS.items():
        table = server.kubectl("get", f"{kind}.{OLD}", kubeconfig=home).splitlines()
        assert " ".join(table[0].split()) == header


def test_an_object_from_before_the_rules_may_have_its_status_written_and_its_finalizers_removed(
    server: ApiServer,
) -> None:
    group = "before.example.com"
    strict = crd.definition(Kind.TASK, group)
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    loose = json.loads(json.dumps(strict))
    for version in loose["spec"]["versions"]:
        version["schema"] = {"openAPIV3Schema": {**anything, "properties": {"spec": anything, "status": anything}}}
    server.kubectl("apply", "-f", "-", input=json.dumps(loose))
    await_served(server, f"/apis/{group}/v1/tasks")
    path = path_of("default", name="x", version=f"{group}/v1")
    spec = {"name": "x", "priority": 500, "restartPolicy": "Sometimes", "dependsOn": ["a"], "inputs": [1]}
    old = {"apiVersion": f"{group}/v1", "kind": "Task", "metadata": {"name": "x", "finalizers": ["a.b/c"]}}
    server.call("POST", path.removesuffix("/x"), {**old, "spec": spec, "status": {"phase": "running"}})
    server.kubectl("apply", "-f", "-", input=json.dumps(strict))
    eventually(lambda: refuses(server, group), "the rules are in force")

    done = patch(server, f"{path}/status", status={"phase": "completed", "attempts": 1, "results": "42"})
    assert done["status"]["results"] == "42"
    with pytest.raises(ApiError, match="less than or equal to 100"):
        patch(server, path, spec={"priority": 400})
    patch(server, path, metadata={"finalizers": None})
    server.kubectl("delete", "crd", f"tasks.{group}", "--timeout=30s")


def refuses(server: ApiServer, group: str) -> bool:
    try:
        body = {**task("wrong", priority=101), "apiVersion": f"{group}/v1"}
        server.call("POST", path_of("default", version=f"{group}/v1") + "?dryRun=All", body)
    except ApiError as refused:
        return refused.status == 422
    return False


def test_a_job_has_a_short_name(server: ApiServer, space: str, home: Path) -> None:
    for group in GROUPS:
        body = {"apiVersion": f"{group}/v1", "kind": "PropellerJob", "metadata": {"name": "x"}, "spec": SPECS[Kind.JOB]}
        server.call("POST", path_of(space, "propellerjobs", version=f"{group}/v1"), body)
    assert server.kubectl("get", "pjob", "-o", "name", kubeconfig=home).endswith("/x\n")


def test_the_tutorials_rows_and_results_are_shown(server: ApiServer, space: str, home: Path) -> None:
    server.kubectl("apply", "-f", str(SAMPLES / "external-proplet.yaml"), kubeconfig=home)
    now = server.call("GET", path_of(space, "proplets", "docker-proplet"))["metadata"]["creationTimestamp"]
    patch(
        server,
        path_of(space, "proplets", "docker-proplet", "status"),
        status={
            "phase": "Running",
            "taskCount": 0,
            "lastSeen": now,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Connected", "status": "True"}],
            "availableResources": {},
        },
    )
    row = server.kubectl("get", f"proplets.{OLD}", "--no-headers", kubeconfig=home)
    assert re.fullmatch(r"docker-proplet +external +Running +True +0 {2,}\d+s +\d+s\n", row)

    said = server.kubectl("apply", "-f", str(SAMPLES / "addition.yaml"), kubeconfig=home)
    assert said == f"task.{OLD}/addition created\n"
    done = {"phase": "completed", "assignedProplet": "docker-proplet", "results": "42", "startedAt": now,
            "finishedAt": now, "updatedAt": now, "attempts": 1}  # fmt: skip
    patch(server, path_of(space, name="addition", part="status"), status=done)
    row = server.kubectl("get", f"tasks.{OLD}", "--no-headers", kubeconfig=home)
    assert re.fullmatch(r"addition +completed {3,}docker-proplet +\d+s +\d+s +any +\d+s\n", row)
    results = server.kubectl("get", f"tasks.{OLD}", "addition", "-o", "jsonpath={.status.results}", kubeconfig=home)
    assert results == "42"
    told = " ".join(server.kubectl("describe", f"tasks.{OLD}", "addition", kubeconfig=home).split())
    for shown in ("Kind: standard", "Preferred Proplet Type: any", "Priority: 50", "Results: 42", "Phase: completed"):
        assert shown in told


def test_a_proplet_of_pods_is_scaled_as_a_deployment_is(server: ApiServer, space: str, home: Path) -> None:
    body = {"apiVersion": f"{OLD}/v1", "kind": "Proplet", "metadata": {"name": "pods"},
            "spec": {"type": "k8s", "k8s": {"image": "i"}}}  # fmt: skip
    assert server.call("POST", path_of(space, "proplets"), body)["spec"]["k8s"]["replicas"] == 1
    server.kubectl("scale", f"proplets.{OLD}", "pods", "--replicas=3", kubeconfig=home)
    replicas = {"k8sStatus": {"readyReplicas": 2, "availableReplicas": 1}}
    patch(server, path_of(space, "proplets", "pods", "status"), status=replicas)
    scale = server.call("GET", path_of(space, "proplets", "pods", "scale"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 2)
    with pytest.raises(KubectlError, match="less than or equal to 100"):
        server.kubectl("scale", f"proplets.{OLD}", "pods", "--replicas=101", kubeconfig=home)


def test_fields_are_explained(server: ApiServer) -> None:
    told = server.kubectl("explain", "pjob.spec.tasks.permissions.dirs")
    assert "absolute" in told
    assert "-required-" in told


def test_a_large_job_is_still_within_what_rules_may_cost(server: ApiServer, space: str) -> None:
    tasks = [
        {"name": f"t{n}", "file": ADDITION, "inputs": list(range(20)), "env": {f"V{v}": "x" for v in range(20)},
         "dependsOn": [f"t{m}" for m in range(max(0, n - 3), n)], "schedule": "*/5 * * * *"}
        for n in range(256)
    ]  # fmt: skip
    body = {"apiVersion": f"{OLD}/v1", "kind": "PropellerJob", "metadata": {"name": "large"},
            "spec": {"name": "large", "tasks": tasks}}  # fmt: skip
    server.call("POST", path_of(space, "propellerjobs"), body)
    server.call("POST", path_of(space), task(inputs=list(range(20_000)), file=ADDITION + "AAAA" * 250_000))
    patch(server, path_of(space, name="addition", part="status"), status={"attempts": 1})
    patch(server, path_of(space, name="addition"), spec={"priority": 1})
