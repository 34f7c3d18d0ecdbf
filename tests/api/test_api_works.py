"""Jobs, federated jobs and rounds as manifests: applied, frozen once they have started, watched by every name."""

from dataclasses import replace

import pytest

from proplet.manager.model import JobStatus, Key, Kind, PropellerJob, WorkPhase
from tests.api.fakes import Node
from tests.api.http import send
from tests.api.test_api_manifests import actions, apply
from tests.api.test_api_tasks import is_error

pytestmark = pytest.mark.anyio

JOB = """
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: PropellerJob
metadata: {name: j}
spec:
  name: both
  executionMode: MODE
  tasks:
  - {name: a, imageUrl: "localhost:5000/add:1"}
  - {name: b, imageUrl: "localhost:5000/add:1", daemon: true}
"""
FEDERATED = """
apiVersion: propeller.propeller.abstractmachines.fr/v1alpha1
kind: FederatedJob
metadata: {name: f}
spec: {experimentId: e, modelRef: "oci://m:0", taskWasmImage: "localhost:5000/t:1", participants: [{propletId: p}],
  kOfN: 1, timeoutSeconds: 60, rounds: {total: 2}, aggregator: {algorithm: fedavg}}
"""
ROUND = """
apiVersion: propeller.propeller.absmach.eu/v1
kind: TrainingRound
metadata: {name: r}
spec: {roundId: round-1, federatedJobRef: {name: f}, modelRef: "oci://m:0", taskWasmImage: "localhost:5000/t:1",
  participants: [p], kOfN: 1, timeoutSeconds: 60}
"""


def job(mode: str = "parallel") -> str:
    return JOB.replace("MODE", mode)


async def test_every_kind_is_applied_read_by_all_its_names_and_deleted(node: Node) -> None:
    both = f"{job()}---{FEDERATED}---{ROUND}"
    assert actions(await apply(node, both)) == [("j", "created"), ("f", "created"), ("r", "created")]
    assert actions(await apply(node, both)) == [("j", "unchanged"), ("f", "unchanged"), ("r", "unchanged")]
    for names, name in (
        (("propellerjobs", "propellerjob", "pjob", "job"), "j"),
        (("federatedjobs", "federatedjob"), "f"),
        (("trainingrounds", "traininground"), "r"),
    ):
        for kind in names:
            assert (await send(node.socket, "GET", f"/api/v1/{kind}/default/{name}")).status == 200
            assert len((await send(node.socket, "GET", f"/api/v1/{kind}")).json["items"]) == 1
        assert (await send(node.socket, "DELETE", f"/api/v1/{names[0]}/default/{name}")).status == 200
        assert (await send(node.socket, "GET", f"/api/v1/{names[0]}")).json["items"] == []


async def test_a_job_may_change_until_it_starts_and_then_its_spec_is_frozen(node: Node) -> None:
    await apply(node, job())
    assert actions(await apply(node, job("sequential"))) == [("j", "configured")]
    found = await node.store.get(Kind.JOB, Key("j"))
    assert isinstance(found, PropellerJob)
    await node.store.record(replace(found, status=JobStatus(WorkPhase.RUNNING, start_time=1.0)))
    answer = await apply(node, job("parallel"))
    assert is_error(answer, 409, "frozen")
    assert "PropellerJob default/j has started: spec.executionMode cannot change" in answer.json["error"]
    assert actions(await apply(node, job("sequential"))) == [("j", "unchanged")]
    labelled = job("sequential").replace("{name: j}", "{name: j, labels: {a: b}}")
    assert actions(await apply(node, labelled)) == [("j", "configured")]


@pytest.mark.parametrize(
    ("kind", "manifest", "change", "path"),
    [
        (Kind.FEDERATED_JOB, FEDERATED, ("total: 2", "total: 3"), "spec.rounds"),
        (Kind.ROUND, ROUND, ("name: f", "name: g"), "spec.federatedJobRef"),
    ],
)
async def test_learning_that_has_started_is_frozen(
    node: Node, kind: Kind, manifest: str, change: tuple[str, str], path: str
) -> None:
    await apply(node, manifest)
    found = (await node.store.list(kind)).items[0]
    status = replace(found.status, phase=WorkPhase.RUNNING)  # type: ignore[type-var,arg-type,call-arg]
    await node.store.record(replace(found, status=status))  # type: ignore[arg-type]
    answer = await apply(node, manifest.replace(*change))
    assert is_error(answer, 409, "frozen")
    assert path in answer.json["error"]


async def test_a_job_starts_and_stops_by_name(node: Node) -> None:
    await apply(node, job())
    for verb in ("start", "stop"):
        assert (await send(node.socket, "POST", f"/api/v1/propellerjobs/default/j/{verb}")).status == 200
        missing = await send(node.socket, "POST", f"/api/v1/propellerjobs/default/x/{verb}")
        assert is_error(missing, 404, "not_found")
    assert any("stop" in name for name in (await node.store.get(Kind.JOB, Key("j"))).meta.annotations)


async def test_what_a_jobs_task_asks_for_that_is_not_supported_is_said_at_once(node: Node) -> None:
    answer = await apply(node, job().replace("daemon: true", "encrypted: true"))
    assert "encrypted" in answer.json["items"][0]["warning"]
