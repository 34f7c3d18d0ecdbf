"""Who is to be looked at when something changes, held to what a search over everything would find."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.manager.jobs import ENDED
from proplet.manager.kinship import Kinship, owner_of
from proplet.manager.model import (
    JobReference,
    JobSpec,
    JobStatus,
    Key,
    Kind,
    Meta,
    Owner,
    PropellerJob,
    Resource,
    RoundSpec,
    Task,
    TaskSpec,
    TaskStatus,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.phases import Phase

NAMES = ("a", "b", "j-x")
UIDS = ("1", "2", "3")


def owners() -> st.SearchStrategy[Owner | None]:
    kinds = st.sampled_from(["PropellerJob", "TrainingRound", "Deployment"])
    return st.none() | st.builds(Owner, kinds, st.sampled_from(NAMES), st.sampled_from(UIDS))


@st.composite
def resources(draw: st.DrawFn) -> Resource:
    meta = Meta(draw(st.sampled_from(NAMES)), uid=draw(st.sampled_from(UIDS)), owner=draw(owners()))
    kind = draw(st.sampled_from(["task", "job", "round"]))
    if kind == "task":
        return Task(replace(meta, uid=f"task {meta.uid}"), status=TaskStatus(draw(st.sampled_from(Phase))))
    if kind == "job":
        refs = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2))
        spec = JobSpec("j", tasks=(TaskSpec("x"),), task_refs=tuple(refs))
        return PropellerJob(replace(meta, owner=None), spec, JobStatus(draw(st.sampled_from(WorkPhase))))
    spec_ = RoundSpec(federated_job=JobReference("f"), participants=("x",))
    return TrainingRound(replace(meta, uid=f"round {meta.uid}"), spec_)


def expected_tasks(there: dict[tuple[Kind, Key], Resource], work: PropellerJob) -> set[str]:
    named = {*work.spec.task_refs, f"{work.meta.name}-x"} if work.status.phase not in ENDED else set()
    return {
        item.meta.name
        for item in there.values()
        if isinstance(item, Task)
        if item.meta.name in named or ((owner := owner_of(item)) is not None and owner[1] == work.meta.uid)
    }


@settings(max_examples=200)
@given(st.lists(st.tuples(resources(), st.booleans()), max_size=30))
def test_what_belongs_together_is_what_a_search_would_find(changes: list[tuple[Resource, bool]]) -> None:
    kin = Kinship()
    there: dict[tuple[Kind, Key], Resource] = {}
    for version, (resource, deleted) in enumerate(changes, 1):
        place = (resource.kind, resource.meta.key)
        others = {item.meta.uid for item in there.values() if (item.kind, item.meta.key) != place}
        if resource.meta.uid in others:
            continue  # a store gives no uid twice
        known = there.get(place)
        if deleted:
            affected = kin.forget(resource)
            if known is None or known.meta.uid != resource.meta.uid:
                assert affected == []
                continue
            del there[place]
            if isinstance(resource, PropellerJob | TrainingRound):
                assert resource.meta.uid in affected
        else:
            new = replace(resource, meta=replace(resource.meta, version=version))  # type: ignore[type-var]
            affected = kin.learn(new)
            assert kin.learn(new) == []
            there[place] = new
            if known is not None and isinstance(known, PropellerJob) and known.meta.uid != new.meta.uid:
                assert known.meta.uid in affected
        assert sorted(kin.works()) == sorted(i.meta.uid for i in there.values() if not isinstance(i, Task))
        for item in there.values():
            if isinstance(item, PropellerJob):
                assert set(kin.related(item).tasks) == expected_tasks(there, item)
    for item in list(there.values()):
        kin.forget(item)
    assert (list(kin.works()), list(kin.owners()), kin._named, kin._names) == ([], [], {}, {})


def test_of_a_jobs_task_only_its_end_is_news_and_of_a_rounds_every_phase() -> None:
    kin = Kinship()
    for kind, uid, looks in (("PropellerJob", "1", [True, False, False, True]), ("TrainingRound", "2", [True] * 4)):
        phases = (Phase.PENDING, Phase.SCHEDULED, Phase.RUNNING, Phase.COMPLETED)
        for version, phase in enumerate(phases, 1):
            meta = Meta(f"of-{uid}", uid=f"task {uid}", version=version, owner=Owner(kind, "o", uid))
            assert bool(kin.learn(Task(meta, status=TaskStatus(phase)))) == looks[version - 1]
