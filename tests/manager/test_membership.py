"""Which proplets are a manager's, what is written of them and how often: as a manager of a cluster has it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.wire import Alive, CpuMetrics, Discovery, MemoryMetrics, Metadata, PropletMetrics
from proplet.manager.exchange import Moment, Policy
from proplet.manager.membership import Membership
from proplet.manager.model import (
    Condition,
    DeviceMetrics,
    Meta,
    Proplet,
    PropletPhase,
    PropletSpec,
    Replicas,
    Resources,
)
from proplet.manager.placement import Fleet
from proplet.manager.registry import REFUSED, Registry
from tests.manager.fakes import OURS
from tests.manager.worlds import EPOCH


def declared(name: str, created_at: float = EPOCH, **spec: Any) -> Proplet:
    return Proplet(Meta(name, uid=f"uid-{name}", created_at=created_at, version=1), PropletSpec(**spec))


class Cluster:
    """A registry whose records are written when it wants that; counts what was written."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        policy = Policy(last_seen_every_s=30.0)
        self.tasks = 0
        membership = Membership(register=False, channel=("d", "c"))
        self.registry = Registry(self.fleet, policy, (), membership, lambda _proplet: self.tasks)
        self.mono = 1000.0
        self.writes = 0
        self.registry.connected(self.at)

    @property
    def at(self) -> Moment:
        return Moment(EPOCH + self.mono, self.mono)

    def add(self, proplet: Proplet) -> Proplet:
        self.registry.learn(proplet, self.at)
        return self.write(proplet.id)

    def write(self, name: str) -> Proplet:
        wanted, known = self.registry.wanted(name, self.at), self.registry.known(name)
        assert known is not None
        if wanted is None:
            return known[0]
        self.writes += 1
        written = replace(known[0], status=wanted, meta=replace(known[0].meta, version=known[0].meta.version + 1))
        self.registry.learn(written, self.at)
        return written

    def second(self, *beating: str) -> None:
        self.mono += 1
        for name in beating:
            self.registry.heard(Alive(name), self.at)
        changed = {*self.registry.sweep(self.at), *self.registry.unwritten(), *beating}
        for name in changed:
            self.write(name)


def shown(proplet: Proplet) -> list[tuple[str, bool, str, str]]:
    return [(c.type, c.status, c.reason, c.message) for c in proplet.status.conditions]


def test_a_declared_proplet_is_awaited_then_ready_then_offline() -> None:
    cluster = Cluster()
    proplet = cluster.add(declared("pi", resources=Resources(cpu=4.0)))
    assert (proplet.status.phase, proplet.status.alive) == (PropletPhase.INITIALIZING, False)
    assert shown(proplet) == [
        ("Ready", False, "PropletInitializing", "Waiting for first connection from external proplet")
    ]
    assert proplet.status.available_resources == Resources(cpu=4.0)
    cluster.second("pi")
    proplet = cluster.write("pi")
    assert (proplet.status.phase, proplet.status.alive) == (PropletPhase.RUNNING, True)
    assert shown(proplet) == [
        ("Ready", True, "PropletReady", "External proplet is ready and connected"),
        ("Connected", True, "PropletOnline", "Proplet is online"),
    ]
    assert proplet.status.last_seen == EPOCH + 1001
    for _ in range(31):
        cluster.second()
    proplet = cluster.write("pi")
    assert (proplet.status.phase, proplet.status.alive) == (PropletPhase.OFFLINE, False)
    why = "last heard of at 2027-01-15T08:16:41Z"
    assert shown(proplet) == [
        ("Ready", False, "PropletOffline", f"External proplet is offline: {why}"),
        ("Connected", False, "PropletOffline", f"Proplet is offline: {why}"),
    ]


def test_one_that_was_never_heard_of_is_awaited_for_ever() -> None:
    cluster = Cluster()
    cluster.add(declared("pi"))
    for _ in range(100):
        cluster.second()
    assert cluster.write("pi").status.phase is PropletPhase.INITIALIZING
    assert cluster.writes == 1


def test_an_idle_proplet_costs_one_write_in_half_a_minute_and_none_when_it_is_away() -> None:
    cluster = Cluster()
    cluster.add(declared("pi"))
    cluster.second("pi")
    cluster.writes = 0
    for _ in range(300):
        cluster.second("pi")
    assert cluster.writes == 10
    cluster.second()
    cluster.registry.heard(Alive("pi", "offline"), cluster.at)
    cluster.write("pi")
    cluster.writes = 0
    for _ in range(300):
        cluster.second()
    assert cluster.writes == 0


def test_the_number_of_tasks_is_written_with_the_next_sign_of_life() -> None:
    cluster = Cluster()
    cluster.add(declared("pi"))
    cluster.second("pi")
    cluster.writes = 0
    cluster.tasks = 1
    cluster.second("pi")
    assert cluster.writes == 0
    for _ in range(30):
        cluster.second("pi")
    known = cluster.registry.known("pi")
    assert known is not None
    assert known[0].status.task_count == 1


def test_what_a_proplet_uses_is_written_with_the_next_sign_of_life() -> None:
    cluster = Cluster()
    cluster.add(declared("pi"))
    cluster.registry.discovered(Discovery("pi", "", Metadata(total_memory_bytes=1000), ext=OURS), cluster.at)
    cluster.write("pi")
    cluster.writes = 0
    metrics = PropletMetrics("pi", "", EPOCH, CpuMetrics(percent=12.5), MemoryMetrics(rss_bytes=250))
    cluster.registry.measured(metrics)
    cluster.second("pi")
    assert cluster.writes == 0
    for _ in range(30):
        cluster.second("pi")
    known = cluster.registry.known("pi")
    assert known is not None
    assert known[0].status.latest_metrics == DeviceMetrics(EPOCH, 12_500, 25_000, 250)


def test_who_was_not_declared_gets_no_record_and_no_tasks_until_it_is_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster()
    cluster.registry.discovered(Discovery("pi", ext=OURS), cluster.at)
    cluster.registry.heard(Alive("pi"), cluster.at)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["'pi' announces itself"]
    assert cluster.registry.wanted("pi", cluster.at) is None
    assert cluster.fleet.peers == {}
    proplet = cluster.add(declared("camera", connection={"clientId": "pi"}))
    assert (proplet.status.phase, proplet.status.extensions) == (PropletPhase.RUNNING, OURS.topics)
    assert cluster.fleet.peers["pi"].alive
    cluster.registry.forget(proplet, cluster.at)
    assert cluster.fleet.peers == {}
    assert cluster.registry.wanted("pi", cluster.at) is None


def test_of_two_with_one_client_id_the_elder_has_it_until_it_goes() -> None:
    cluster = Cluster()
    young, old = (declared(name, at, connection={"clientId": "x"}) for name, at in (("young", 2.0), ("old", 1.0)))
    cluster.add(young)
    assert cluster.add(old).meta.name == "old"
    assert REFUSED + young.meta.uid in cluster.registry.touched()
    told = cluster.registry.wanted_refusal(young.meta.uid, cluster.at)
    assert told is not None
    assert shown(told) == [("Ready", False, "DuplicateIdentity", "x is the client id of the Proplet default/old, too")]
    cluster.registry.learn(replace(told, meta=replace(told.meta, version=5)), cluster.at)
    assert cluster.registry.wanted_refusal(young.meta.uid, cluster.at) is None
    assert cluster.fleet.peers["x"].proplet.meta.name == "old"
    cluster.registry.forget(old, cluster.at)
    assert cluster.fleet.peers["x"].proplet.meta.name == "young"


def test_a_proplet_of_another_channel_is_left_to_its_manager_if_it_has_one() -> None:
    cluster = Cluster()
    far = declared("far", connection={"domainId": "d", "channelId": "other"})
    cluster.registry.learn(far, cluster.at)
    told = cluster.registry.wanted_refusal(far.meta.uid, cluster.at)
    assert told is not None
    assert told.status.conditions[0].reason == "OtherChannel"
    assert cluster.fleet.peers == {}
    ready = Condition("Ready", True, "PropletReady", "External proplet is ready and connected", 5.0)
    others = replace(far, status=replace(far.status, conditions=(ready,), observed_generation=1))
    cluster.registry.learn(others, cluster.at)
    assert cluster.registry.wanted_refusal(far.meta.uid, cluster.at) is None


def test_a_proplet_that_moves_to_this_channel_is_taken() -> None:
    cluster = Cluster()
    far = declared("far", connection={"tenantId": "d", "channelId": "other"})
    cluster.registry.learn(far, cluster.at)
    near = replace(far, spec=replace(far.spec, connection={"tenantId": "d", "channelId": "c", "entityId": "far"}))
    cluster.add(replace(near, meta=replace(near.meta, version=2)))
    assert "far" in cluster.fleet.peers
    cluster.registry.learn(replace(far, meta=replace(far.meta, version=3)), cluster.at)
    assert cluster.fleet.peers == {}


def test_of_a_proplet_of_type_k8s_only_the_connection_is_said_here() -> None:
    cluster = Cluster()
    ready = Condition("Ready", False, "DeploymentScalingUp", "1 replicas are to come", 7.0)
    proplet = declared("pods", type="k8s", k8s={"image": "x"})
    proplet = cluster.add(
        replace(proplet, status=replace(proplet.status, conditions=(ready,), replicas=Replicas(0, 0)))
    )
    assert (shown(proplet)[0][2], proplet.status.replicas) == ("DeploymentScalingUp", Replicas(0, 0))
    cluster.second("pods")
    proplet = cluster.write("pods")
    assert [c.type for c in proplet.status.conditions] == ["Ready", "Connected"]
    healthy = Condition("Healthy", True, "DeploymentAvailable", "", 7.0)
    status = replace(proplet.status, conditions=(proplet.status.conditions[0], proplet.status.conditions[1], healthy))
    cluster.registry.learn(replace(proplet, status=status, meta=replace(proplet.meta, version=9)), cluster.at)
    assert cluster.registry.wanted("pods", cluster.at) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "delete"]),
            st.integers(0, 4),
            st.sampled_from(["x", "y"]),
            st.sampled_from(["c", "c", "elsewhere"]),
        ),
        max_size=30,
    )
)
def test_every_client_id_is_its_eldest_claimants_whatever_is_declared_moved_and_deleted(
    changes: list[tuple[str, int, str, str]],
) -> None:
    cluster, records = Cluster(), dict[int, Proplet]()
    for version, (what, which, client, channel) in enumerate(changes):
        if what == "delete":
            if which in records:
                cluster.registry.forget(records.pop(which), cluster.at)
        else:
            made = declared(f"p{which}", float(which), connection={"clientId": client, "channelId": channel})
            records[which] = replace(made, meta=replace(made.meta, version=version + 1))
            cluster.registry.learn(records[which], cluster.at)
        touched = cluster.registry.touched()
        for name in ("x", "y"):
            claims = [p for p in records.values() if p.id == name and p.spec.connection["channelId"] == "c"]
            eldest = min(claims, key=lambda p: p.meta.created_at, default=None)
            known = cluster.registry.known(name)
            assert (known[0] if known is not None and known[1] else None) == eldest
            assert (name in cluster.fleet.peers) is (eldest is not None)
        holders = {p.meta.uid for p in (cluster.registry.known("x"), cluster.registry.known("y")) if p for p in p[:1]}
        for record in records.values():
            refused = cluster.registry.wanted_refusal(record.meta.uid, cluster.at)
            assert (refused is None) is (record.meta.uid in holders)
            assert cluster.registry.has(record)
        assert touched or what == "delete"
