"""Any resource of any kind, with all its fields."""

from dataclasses import replace

from hypothesis import strategies as st

from proplet.agent.wire import (
    DirectoryGrant,
    Limits,
    Metadata,
    MonitoringProfile,
    Permissions,
    PullPolicy,
    Reason,
    RestartPolicy,
    Usage,
)
from proplet.manager.model import (
    Aggregator,
    Condition,
    DeviceMetrics,
    ExecutionMode,
    FederatedJob,
    FederatedSpec,
    FederatedStatus,
    JobReference,
    JobSpec,
    JobStatus,
    Meta,
    Owner,
    Participant,
    ParticipantStatus,
    Participation,
    PropellerJob,
    Proplet,
    PropletPhase,
    PropletSelector,
    PropletSpec,
    PropletStatus,
    Replicas,
    Resources,
    Rounds,
    RoundSpec,
    RoundStatus,
    Task,
    TaskSpec,
    TaskStatus,
    TrainingRound,
    WorkPhase,
)
from proplet.manager.phases import Phase

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
word = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=10)
counts = st.integers(0, 2**63 - 1)
positive = st.floats(1e-6, 1e8)
# As stores keep them: whole microseconds.
moments = st.just(0.0) | st.floats(1.0, 4e9).map(lambda value: round(value, 6))
maps = st.dictionaries(word, text, max_size=3)
texts = st.lists(text, max_size=3).map(tuple)
json = st.recursive(
    st.none() | st.booleans() | counts | st.floats(-1e100, 1e100) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(text, json, max_size=3)


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


cpus = optional(st.floats(1e-6, 1e6) | st.integers(0, 100_000).map(lambda milli: milli / 1000))
limits = st.builds(
    Limits,
    memory_bytes=optional(counts),
    cpu_s=optional(positive),
    output_bytes=optional(counts),
    stack_bytes=optional(counts),
    fuel=optional(counts),
)
profiles = st.builds(
    MonitoringProfile,
    enabled=st.booleans(),
    interval=st.integers(1, 10**6).map(lambda milli: milli / 1000),
    collect_cpu=st.booleans(),
    history_size=counts,
)
metas = st.builds(
    Meta,
    name=word,
    namespace=word,
    uid=word,
    labels=st.dictionaries(word, word, max_size=3),
    annotations=maps,
    created_at=moments,
    updated_at=moments,
    generation=st.integers(1, 9),
    version=st.integers(0, 2**53),
    owner=optional(st.builds(Owner, word, word, word, st.booleans(), st.sampled_from(["", "apps/v1"]))),
    finalizers=st.lists(word, max_size=2).map(tuple),
    deleted_at=moments,
)
task_specs = st.builds(
    TaskSpec,
    name=word,
    function_name=text,
    kind=st.sampled_from(["standard", "federated"]),
    image_url=text,
    file=st.binary(max_size=40),
    inputs=texts,
    cli_args=texts,
    env=maps,
    env_secrets=st.dictionaries(word, st.fixed_dictionaries({"name": word, "key": word}), max_size=2),
    selector=st.builds(PropletSelector, optional(text), maps, texts, texts),
    preferred_proplet_type=st.sampled_from(["any", "k8s"]),
    resources=st.builds(Resources, cpus, optional(counts), st.dictionaries(word, st.just("1"), max_size=2)),
    daemon=st.booleans(),
    latent=st.booleans(),
    broadcast=st.booleans(),
    mode=optional(st.just("infer")),
    monitoring_profile=optional(profiles),
    restart_policy=optional(st.sampled_from(RestartPolicy)),
    backoff_limit=optional(counts),
    active_deadline_seconds=optional(positive),
    ttl_seconds_after_finished=optional(counts),
    pull_policy=optional(st.sampled_from(PullPolicy)),
    limits=limits,
    permissions=st.builds(
        Permissions, st.lists(st.builds(DirectoryGrant, text, text, st.booleans()), max_size=2).map(tuple), texts, texts
    ),
    encrypted=st.booleans(),
    kbs_resource_path=optional(text),
    hal_storage_path=optional(text),
    depends_on=texts,
    run_if=optional(st.just("failure")),
    workflow_id=optional(text),
    job_id=optional(text),
    schedule=optional(text),
    timezone=optional(st.sampled_from(["", "UTC", "Europe/Paris"])),
    is_recurring=st.booleans(),
    suspend=st.booleans(),
    concurrency_policy=optional(st.just("Forbid")),
    starting_deadline_seconds=optional(positive),
    priority=st.integers(0, 100),
    metadata=objects,
    held=st.booleans(),
).map(lambda spec: replace(spec, latent=spec.latent and not spec.daemon))
conditions = st.lists(st.builds(Condition, word, st.booleans(), text, text, moments), max_size=2).map(tuple)
broadcast_entries = st.fixed_dictionaries(
    {"proplet_id": word, "phase": st.sampled_from([p.value for p in Phase])},
    optional={
        "results": text,
        "error": text,
        "reason": word,
        "exit_code": st.integers(-(2**31), 2**31),
        "finished_at": moments.filter(bool),
    },
)
task_statuses = st.builds(
    TaskStatus,
    phase=st.sampled_from(Phase),
    proplet_id=optional(text),
    attempt=counts,
    failures=counts,
    stop_requested=st.booleans(),
    dispatched_at=moments,
    started_at=moments,
    finished_at=moments,
    next_run=moments,
    not_before=moments,
    results=optional(text),
    error=optional(text),
    reason=optional(st.sampled_from(Reason)),
    message=text,
    exit_code=optional(st.integers(-(2**31), 2**31)),
    resolved_image=optional(text),
    usage=optional(
        st.builds(
            Usage, optional(positive), optional(counts), st.dictionaries(word, positive, max_size=2), optional(word)
        )
    ),
    broadcast_results=st.lists(broadcast_entries, max_size=2).map(tuple),
    conditions=conditions,
    observed_generation=counts,
    assigned_proplet=optional(text),
)
tasks = st.builds(Task, metas, task_specs, task_statuses)
pod_environments = st.fixed_dictionaries(
    {}, optional={"tags": text, "metricsPort": st.integers(1, 65535), "halEnabled": st.booleans()}
)
connections = st.just({}) | st.fixed_dictionaries(
    {"channelId": word},
    optional={"clientId": word, "apiKeySecretRef": st.just({"name": "n", "key": "k"}), "mqttQos": st.integers(0, 2)},
)
proplets = st.builds(
    Proplet,
    metas,
    st.builds(
        PropletSpec,
        type=st.sampled_from(["external", "k8s"]),
        device_type=optional(text),
        capabilities=texts,
        resources=st.builds(Resources, cpus, optional(counts), st.just({}) | st.just({"gpu": "2"})),
        connection=connections,
        k8s=st.just({})
        | st.fixed_dictionaries({"image": word}, optional={"replicas": st.integers(0, 9), "env": pod_environments}),
        declared=st.booleans(),
    ),
    st.builds(
        PropletStatus,
        phase=st.sampled_from(PropletPhase),
        last_seen=moments,
        metadata=optional(st.builds(Metadata, tags=texts, os=text, total_memory_bytes=counts)),
        extensions=texts,
        encodings=texts,
        conditions=conditions,
        alive=st.booleans(),
        task_count=counts,
        available_resources=optional(st.builds(Resources, cpus, optional(counts), st.just({}))),
        replicas=optional(st.builds(Replicas, st.integers(0, 100), st.integers(0, 100))),
        latest_metrics=optional(st.builds(DeviceMetrics, moments, counts, counts, counts)),
        observed_generation=counts,
    ),
)
phases = st.sampled_from(WorkPhase)
jobs = st.builds(
    PropellerJob,
    metas,
    st.builds(
        JobSpec,
        name=text,
        execution_mode=st.sampled_from(ExecutionMode),
        tasks=st.lists(task_specs, max_size=2).map(tuple),
        task_refs=texts,
    ),
    st.builds(
        JobStatus,
        phase=phases,
        start_time=moments,
        finish_time=moments,
        task_count=counts,
        completed_count=counts,
        failed_count=counts,
        skipped_count=counts,
        interrupted_count=counts,
        conditions=conditions,
        observed_generation=counts,
    ),
)
federated_jobs = st.builds(
    FederatedJob,
    metas,
    st.builds(
        FederatedSpec,
        experiment_id=text,
        model_ref=text,
        task_wasm_image=text,
        participants=st.lists(st.builds(Participant, text), max_size=3).map(tuple),
        hyperparams=json,
        k_of_n=counts,
        timeout_seconds=counts,
        rounds=st.builds(Rounds, counts, text),
        aggregator=st.builds(Aggregator, text, json),
    ),
    st.builds(
        FederatedStatus,
        phase=phases,
        current_round=counts,
        completed_rounds=counts,
        participants=st.lists(st.builds(ParticipantStatus, text, text, moments), max_size=2).map(tuple),
        aggregated_model_ref=optional(text),
        aggregate=optional(objects),
        start_time=moments,
        finish_time=moments,
        conditions=conditions,
        observed_generation=counts,
    ),
)
rounds = st.builds(
    TrainingRound,
    metas,
    st.builds(
        RoundSpec,
        round_id=text,
        federated_job=st.builds(JobReference, text),
        model_ref=text,
        task_wasm_image=text,
        participants=texts,
        hyperparams=json,
        k_of_n=counts,
        timeout_seconds=counts,
        algorithm=text,
        experiment_id=text,
        global_update=optional(objects),
    ),
    st.builds(
        RoundStatus,
        phase=phases,
        start_time=moments,
        end_time=moments,
        participants=st.lists(st.builds(Participation, text, objects, text, st.booleans()), max_size=2).map(tuple),
        updates_received=counts,
        updates_required=counts,
        aggregated_model_ref=optional(text),
        aggregate=optional(objects),
        conditions=conditions,
        observed_generation=counts,
    ),
)
resources = tasks | proplets | jobs | federated_jobs | rounds
