"""The defects that are known of the reference's operator, and the faults to survive: where each is held to a test.

`SHOWN` is that table. What had no test elsewhere has one here: with kubectl, a real API server and the real manager.
"""

import ast
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from proplet.agent.wire import Reason, Start
from proplet.manager.broker import Identity, Role
from tests.kubernetes.test_pods import Cluster, pod_proplet
from tests.manager.device import Device
from tests.support.kubernetes import ApiServer, KubectlError
from tests.support.kubernetes_manager import (
    GROUP,
    KINDS,
    ROOT,
    TOPICS,
    Holding,
    ManagerProcess,
    Workspace,
    eventually,
    install_crds,
    manager_arguments,
    plugged,
    proplet_manifest,
    task_manifest,
)
from tests.support.mosquitto import IDENTITIES, MosquittoServer

HERE = "kubernetes/test_defects.py"
CRDS = "kubernetes/test_crds.py"
FAULTS = "kubernetes/faults/test_processes_that_die.py"
LEADERS = "kubernetes/faults/test_leaders_that_fail.py"
NETWORKS = "kubernetes/faults/test_networks_that_fail.py"
RESISTANCE = "kubernetes/faults/test_clusters_that_resist.py"
COMMAND = "kubernetes/test_manager_command.py"
ORDERS = "kubernetes/test_task_orders.py"
PODS = "kubernetes/test_pods.py"
INSTALLATION = "kubernetes/test_installation.py"
LEASE = "kubernetes/test_lease.py"
EVENTS = "kubernetes/test_events.py"
WATCHES = "kubernetes/test_watches.py"
CONTROLLER = "manager/test_controller.py"
CONTROLLER_COMMANDS = "manager/test_controller_commands.py"
CONTROLLER_MESSAGES = "manager/test_controller_messages.py"
CONTROLLER_ORDERS = "manager/test_controller_orders.py"
CONTROLLER_RESTARTS = "manager/test_controller_restarts.py"
CORE = "manager/test_task_core.py"
RECURRENCE = "manager/test_recurrence.py"
BROADCAST = "manager/test_broadcast.py"
PLACEMENT = "manager/test_placement.py"
CROWD = "manager/test_crowd.py"
MEMBERSHIP = "manager/test_membership.py"
REGISTRY = "manager/test_registry.py"
DEPLOYMENTS = "manager/test_deployments.py"
MANAGER_MOSQUITTO = "manager/test_manager_mosquitto.py"
ROUNDS = "federated/test_rounds.py"
UPDATES = "federated/test_updates.py"
AVERAGING = "federated/test_averaging.py"
FEDERATION = "federated/test_federation.py"
CORPUS = "manifests/test_manifest_corpus.py"

# What each is about, and the tests that show that it is not so here: a file under tests, and names in it.
Shown = Mapping[str, Mapping[str, tuple[str, ...]]]
SHOWN: Shown = {
    "W-H1 webhooks without a certificate refuse every write": {
        HERE: ("test_nothing_that_is_installed_stands_between_a_user_and_the_resources",),
        INSTALLATION: ("test_an_overlay_is_accepted",),
        COMMAND: ("test_the_tutorial_works_as_it_is_written",),
    },
    "W-H2 inputs that are numbers are refused": {
        CRDS: ("test_inputs_are_kept_as_they_are_written",),
        COMMAND: ("test_the_tutorial_works_as_it_is_written",),
    },
    "W-H3 a proplet's tasks are counted by another name than they are assigned by": {
        HERE: ("test_a_proplet_counts_its_own_tasks_and_not_those_of_a_namesake",),
        CONTROLLER_ORDERS: ("test_a_proplet_s_record_counts_the_tasks_it_has_and_had",),
        "manager/test_conditions.py": (
            "test_the_assigned_proplet_is_named_as_its_resource_and_identified_as_on_the_wire",
        ),
    },
    "W-H4 a status is written because it was written": {
        ORDERS: ("test_nothing_is_written_while_nothing_happens",),
        MEMBERSHIP: ("test_an_idle_proplet_costs_one_write_in_half_a_minute_and_none_when_it_is_away",),
        CONTROLLER_ORDERS: ("test_a_cluster_s_manager_writes_nothing_while_nothing_happens",),
        "kubernetes/test_store_kubernetes.py": ("test_an_unchanged_write_does_not_reach_the_server",),
    },
    "W-H5 no federated job ever completes": {
        "kubernetes/test_federated_learning.py": ("test_three_proplets_of_a_cluster_learn_although_one_dies",),
        ROUNDS: (
            "test_updates_count_over_time_and_the_kth_ends_the_round",
            "test_a_round_ends_when_its_time_is_over",
            "test_a_round_that_can_no_longer_succeed_fails_at_once_with_the_reasons",
            "test_an_update_that_cannot_be_used_is_refused_alone_and_told_once",
            "test_the_largest_update_is_handed_on_and_fits",
        ),
        UPDATES: (
            "test_the_envelope_is_found_wherever_peers_put_it",
            "test_all_but_the_update_may_be_missing",
            "test_a_round_is_a_number_its_decimals_or_a_name_with_it",
            "test_an_envelope_of_any_wording_arrives_over_the_wire",
        ),
        AVERAGING: (
            "test_the_mean_is_weighted_by_the_number_of_samples",
            "test_json_that_a_proplet_calls_f32_delta_is_json",
        ),
        FEDERATION: ("test_a_round_hands_what_it_learnt_to_the_next",),
        CORPUS: ("test_a_manifest_to_refuse_is_refused_for_its_reason",),
        "node/test_federated_learning.py": ("test_an_update_outlives_the_manager_that_received_it",),
        "federated/test_sizes_in_a_cluster.py": (
            "test_a_job_with_the_largest_updates_and_hyperparameters_runs_in_a_cluster",
        ),
    },
    "W-H6 proplets that announce themselves cannot be registered": {
        COMMAND: ("test_proplets_that_announce_themselves_are_registered_where_that_is_wanted",),
        HERE: ("test_proplets_whose_ids_are_no_names_or_those_of_others_are_registered_too",),
    },
    "W-H7 a proplet whose will says that it is gone counts as alive": {
        REGISTRY: ("test_a_will_marks_offline_at_once_and_lost_after_a_grace",),
        COMMAND: ("test_the_tutorial_works_as_it_is_written",),
    },
    "W-H8 results that come while the manager is away are lost": {
        FAULTS: (
            "test_a_manager_that_is_killed_again_and_again_loses_nothing",
            "test_a_manager_that_is_killed_between_any_two_steps_of_a_dispatch_loses_and_repeats_nothing",
            "test_what_ends_while_the_cluster_is_long_away_is_told_when_it_is_back",
        ),
        "manager/test_bus.py": ("test_what_was_not_acknowledged_comes_again_after_a_restart",),
        CONTROLLER_MESSAGES: (
            "test_a_result_is_acknowledged_only_when_it_is_recorded",
            "test_a_result_that_the_broker_lost_is_told_again_when_the_task_is_missing_from_the_inventory",
        ),
    },
    "W-H9 no time limit, no repetition, no stop, no removal; a lost proplet's tasks run for ever": {
        CORE: (
            "test_the_tasks_of_a_lost_proplet_go_to_another_one",
            "test_a_task_on_a_silent_proplet_is_lost_an_hour_and_a_margin_later",
            "test_a_deadline_that_is_given_fails_a_task_on_a_silent_proplet",
            "test_interruptions_back_off_and_end_at_the_limit",
            "test_a_finished_task_is_deleted_when_its_time_is_over",
            "test_a_running_task_is_stopped_by_a_message_with_its_attempt",
        ),
        MANAGER_MOSQUITTO: ("test_the_tasks_of_a_device_that_goes_away_run_on_another_one",),
        "manager/test_task_properties.py": ("test_no_sequence_of_events_leaves_a_task_stuck_or_counts_a_result_twice",),
    },
    "W-H10 a write that fails sends the task again": {
        CORE: (
            "test_the_intent_is_recorded_before_the_start_is_sent",
            "test_a_start_that_nobody_confirms_is_sent_again_with_the_same_attempt",
        ),
        FAULTS: ("test_a_manager_that_is_killed_between_any_two_steps_of_a_dispatch_loses_and_repeats_nothing",),
        CONTROLLER_RESTARTS: ("test_a_store_that_is_away_for_a_while_loses_nothing",),
    },
    "W-H11 managers on standby take the leader's connection": {
        LEADERS: (
            "test_of_two_managers_one_works_and_the_other_takes_over",
            "test_a_leader_that_was_frozen_finds_out_and_leaves_the_broker_to_the_next",
            "test_a_leader_that_cannot_renew_its_lease_leaves_the_broker_to_the_next",
        ),
        LEASE: ("test_of_many_that_try_at_once_exactly_one_gets_it",),
    },
    "W-H12 what a task uses is never seen": {
        CORE: ("test_a_result_completes_the_task_with_what_it_cost",),
        CONTROLLER: ("test_metrics_and_logs_are_kept_in_memory_within_bounds",),
        MEMBERSHIP: ("test_what_a_proplet_uses_is_written_with_the_next_sign_of_life",),
    },
    "W-H13 replicas share an identity; pods without probes, limits, restrictions; Deployments are not watched": {
        PODS: (
            "test_every_replica_has_an_identity_of_its_own",
            "test_a_k8s_proplet_is_a_deployment_and_runs_tasks",
            "test_a_deployment_that_somebody_changes_or_deletes_is_put_right",
        ),
        DEPLOYMENTS: (
            "test_durations_are_whole_seconds_and_flags_are_words",
            "test_what_is_asked_for_is_the_limit_too",
            "test_a_certificate_is_mounted_and_named_as_far_as_the_secret_has_it",
            "test_only_a_port_that_there_is_is_probed",
        ),
    },
    "W-H14 secrets can be seen": {
        HERE: (
            "test_no_secret_is_seen_in_logs_statuses_events_or_pages",
            "test_a_refusal_does_not_repeat_the_key",
        ),
        PODS: ("test_a_key_that_everybody_can_read_is_warned_of",),
        COMMAND: ("test_what_is_wrong_with_the_arguments_is_said_in_a_line",),
        INSTALLATION: ("test_an_overlay_is_accepted",),
    },
    "W-H15 the manager reaches no broker over TLS": {
        COMMAND: ("test_the_broker_is_reached_over_tls_and_metrics_are_served_so",),
        "mqtt/test_mqtt_link.py": (
            "test_tls_and_websockets_carry_messages_both_ways",
            "test_a_certificate_of_an_unknown_authority_is_named",
        ),
    },
    "W-H16 what makes no sense is accepted, and what runs can be changed": {
        CORPUS: (
            "test_a_manifest_to_refuse_is_refused_for_its_reason",
            "test_every_rule_has_a_manifest_that_breaks_it",
        ),
        CRDS: (
            "test_a_manifest_to_refuse_is_refused_unless_it_says_why_not",
            "test_what_a_dispatched_task_runs_cannot_change",
            "test_what_a_job_consists_of_cannot_change_once_it_has_started",
        ),
        ORDERS: ("test_what_keeps_a_proplet_from_being_ready_is_in_its_condition",),
        MEMBERSHIP: ("test_every_client_id_is_its_eldest_claimants_whatever_is_declared_moved_and_deleted",),
        "manager/test_workflow.py": ("test_a_circle_fails_and_is_named",),
    },
    "W-H17 schedules start at once, run back to back, mix results and keep no history": {
        RECURRENCE: (
            "test_the_first_run_waits_for_its_time",
            "test_a_time_that_comes_while_the_last_run_is_under_way_is_left_out",
            "test_a_recurring_task_runs_at_every_time_and_its_attempts_count_on",
            "test_times_that_passed_unseen_are_made_up_for_by_one_run",
            "test_replace_stops_the_last_run_and_starts_the_next_when_it_has_ended",
        ),
        CORE: ("test_a_late_result_of_an_earlier_run_does_not_end_the_new_one_before_it_is_placed",),
    },
    "W-H18 the first result of a broadcast is that of all": {
        BROADCAST: (
            "test_a_broadcast_is_complete_when_all_have_answered",
            "test_one_failure_fails_the_broadcast_when_all_have_answered_and_says_whose_it_was",
        ),
        CONTROLLER: ("test_a_broadcast_runs_on_every_proplet_and_lists_their_results",),
        HERE: ("test_a_profile_without_an_interval_runs",),
    },
    "W-H19 neither room nor load nor priority is looked at, and nobody says why a task waits": {
        PLACEMENT: (
            "test_only_a_proplet_that_fits_is_chosen",
            "test_the_least_loaded_proplet_is_chosen",
            "test_the_message_says_why_nobody_can_have_the_task",
            "test_a_full_proplet_gets_no_more_and_that_is_another_kind_of_waiting",
        ),
        CROWD: ("test_the_most_urgent_is_called_first_then_who_came_first",),
        CONTROLLER: ("test_a_task_that_waits_is_placed_when_a_proplet_appears",),
        ORDERS: ("test_nothing_is_written_while_nothing_happens",),
        HERE: ("test_a_proplet_that_is_not_there_is_waited_for_and_that_is_said",),
    },
    "W-H20 what learns makes names that are none, and confuses names with identities": {
        ROUNDS: (
            "test_whatever_participants_are_called_their_tasks_have_names_and_labels",
            "test_names_that_would_become_the_same_stay_apart",
        ),
        FEDERATION: ("test_the_longest_name_of_a_job_gives_rounds_and_tasks_their_names",),
        "federated/test_round_starts.py": ("test_participants_are_named_by_their_resources_in_their_namespace",),
        "kubernetes/test_federated_learning.py": ("test_a_round_that_is_started_over_mqtt_runs_as_a_job",),
    },
    "W-H21 no events, no metrics, ready without a broker, an interrupted task completed successfully": {
        EVENTS: ("test_kubectl_shows_what_was_told_of_whom",),
        FAULTS: ("test_a_task_outlives_the_broker",),
        COMMAND: ("test_the_tutorial_works_as_it_is_written",),
        "manager/test_health.py": ("test_what_passes_through_the_store_is_counted",),
        "manager/test_conditions.py": ("test_a_task_that_does_not_complete_says_why",),
    },
    "W-H22 finalizers stay, and what has one is never gone after uninstalling": {
        COMMAND: (
            "test_finalizers_come_off_so_that_everything_can_be_deleted",
            "test_after_that_the_definitions_can_be_deleted",
        ),
        ORDERS: ("test_a_task_that_lasts_is_marked_and_a_short_one_after_it_is_not",),
    },
    "W-H23 a module in a manifest is kept several times, and one from a registry needs both": {
        "manager/test_jobs.py": ("test_a_parallel_job_makes_all_its_tasks_at_once_and_completes_with_the_last",),
        CORE: ("test_a_start_that_is_too_large_for_the_broker_fails_the_task_with_the_reason",),
        "manager/test_works_troubles.py": ("test_children_that_the_store_refuses_are_told_in_the_status",),
        "node/test_faults.py": ("test_a_module_from_a_registry_is_pulled_run_and_named_by_its_digest",),
        CORPUS: ("test_a_sample_is_taken_and_asks_for_nothing_that_cannot_run",),
    },
    "W-H24 a proplet of another channel is never ready, and nobody says why": {
        COMMAND: ("test_a_proplet_on_another_channel_is_told_so",),
        MEMBERSHIP: ("test_a_proplet_that_moves_to_this_channel_is_taken",),
    },
    "W-H25 resources of the former group are orphans": {
        CRDS: ("test_both_groups_are_served_side_by_side",),
        COMMAND: ("test_the_newer_group_and_its_names_work_the_same",),
        "manager/test_crd.py": ("test_both_groups_are_the_same_but_for_their_name",),
    },
    "W-H26 a manager of one namespace needs permissions for all": {
        INSTALLATION: ("test_its_permissions_are_enough_for_the_manager_and_no_more",),
        COMMAND: ("test_only_the_namespaces_to_watch_are_managed",),
        "kubernetes/test_store_kubernetes.py": ("test_with_namespaces_it_needs_no_permission_beyond_them",),
    },
    "W-H27 one message that is answered slowly holds up all others": {
        "federated/test_round_starts.py": (
            "test_a_start_that_the_store_never_takes_does_not_hold_up_the_others_for_ever",
        ),
        "mqtt/test_mqtt_link.py": ("test_a_thousand_messages_at_once_are_all_acknowledged_and_delivered",),
    },
    # Only in the older version.
    "a failure is shown as completed": {
        HERE: ("test_a_failure_is_shown_as_one",),
        CORE: ("test_a_failure_of_the_guest_is_final",),
    },
    "after the first loss of its broker a manager is deaf": {
        FAULTS: ("test_a_task_outlives_the_broker",),
        MANAGER_MOSQUITTO: ("test_a_broker_that_restarts_with_nothing_changes_nothing",),
        "mqtt/test_mqtt_link.py": ("test_a_killed_broker_that_comes_back_is_found_and_subscribed_to_again",),
    },
    "a task for a proplet that is missing counts as running": {
        HERE: ("test_a_proplet_that_is_not_there_is_waited_for_and_that_is_said",),
        MANAGER_MOSQUITTO: ("test_a_pinned_task_waits_for_its_device_and_says_so",),
    },
    "labels, capabilities and types of proplets are not looked at": {
        PLACEMENT: ("test_only_a_proplet_that_fits_is_chosen",),
        CONTROLLER_ORDERS: ("test_a_task_can_ask_for_a_proplet_by_its_name_or_its_client_id_or_by_what_it_is",),
    },
    "deleting a task does not stop it": {
        ORDERS: ("test_kubectl_delete_waits_until_a_daemon_was_stopped",),
        RESISTANCE: ("test_a_task_that_is_deleted_is_stopped_and_a_proplet_that_is_gone_does_not_hold_it",),
        CONTROLLER_COMMANDS: ("test_a_deleted_task_is_stopped_and_stopped_again_if_it_turns_up",),
    },
    "a profile without an interval ends the manager": {HERE: ("test_a_profile_without_an_interval_runs",)},
    "a job of references never ends": {
        "kubernetes/test_jobs.py": ("test_a_job_completes_and_kubectl_shows_the_references_columns",),
        "manager/test_jobs.py": ("test_a_task_referred_to_that_is_missing_is_waited_for_and_never_counted",),
        "manager/test_works.py": ("test_a_task_referred_to_that_comes_later_is_noticed",),
    },
    "tasks of other namespaces are counted": {
        HERE: ("test_a_proplet_counts_its_own_tasks_and_not_those_of_a_namesake",),
    },
    # Faults to survive.
    "the API server is killed and started": {
        FAULTS: (
            "test_a_task_outlives_the_api_server",
            "test_what_ends_while_the_cluster_is_long_away_is_told_when_it_is_back",
        ),
        WATCHES: ("test_nothing_is_lost_when_the_server_is_killed_and_started",),
    },
    "the broker is killed and started": {FAULTS: ("test_a_task_outlives_the_broker",)},
    "the manager is killed between any two steps": {
        FAULTS: ("test_a_manager_that_is_killed_between_any_two_steps_of_a_dispatch_loses_and_repeats_nothing",),
        "manager/test_works_troubles.py": (
            "test_after_a_crash_at_any_step_a_restart_goes_on_without_making_anything_twice",
        ),
    },
    "of two managers the leader is killed": {
        LEADERS: ("test_of_two_managers_one_works_and_the_other_takes_over",),
    },
    "the server has forgotten what came after": {
        NETWORKS: ("test_what_the_server_forgot_meanwhile_is_listed_again",),
        WATCHES: ("test_who_follows_from_a_version_that_the_server_forgot_lists_again",),
    },
    "others write all the time": {
        RESISTANCE: ("test_somebody_who_changes_tasks_all_the_time_keeps_none_from_its_end",),
        "kubernetes/test_many_writers.py": ("test_everybody_ends_with_the_servers_state",),
    },
    "the cluster refuses what is to be recorded of one Task": {
        RESISTANCE: ("test_a_task_whose_status_the_cluster_refuses_holds_up_no_other",),
        "manager/test_refused_records.py": (
            "test_a_result_that_cannot_be_recorded_does_not_hold_up_what_is_behind_it_and_is_not_forgotten",
        ),
    },
    "the clock is set": {
        LEASE: ("test_the_time_of_day_decides_nothing",),
        CONTROLLER_RESTARTS: ("test_a_clock_that_is_set_while_tasks_run_loses_none",),
        CONTROLLER_ORDERS: ("test_a_scheduled_task_runs_at_its_time_and_again_when_the_clock_is_set",),
        RECURRENCE: ("test_whatever_the_clock_does_runs_come_neither_in_bursts_nor_not_at_all",),
    },
    "nothing gets through the network": {
        NETWORKS: (
            "test_nothing_is_lost_while_no_packet_gets_through",
            "test_a_cluster_that_is_silent_is_away_although_nobody_has_ended_a_connection",
        ),
        WATCHES: (
            "test_a_watch_whose_connection_is_cut_goes_on_where_it_was",
            "test_a_server_that_does_not_answer_does_not_hold_the_store",
        ),
    },
    "a device loses its cluster": {FAULTS: ("test_a_device_with_a_cluster_goes_on_without_it",)},
    "what runs is deleted, also where its proplet is gone": {
        RESISTANCE: ("test_a_task_that_is_deleted_is_stopped_and_a_proplet_that_is_gone_does_not_hold_it",),
    },
    "everything is uninstalled": {
        COMMAND: ("test_after_that_the_definitions_can_be_deleted",),
        RESISTANCE: ("test_definitions_that_are_deleted_under_a_manager_go_with_everything_and_may_come_back",),
    },
}

# Of the defects above: what the reference has and we have not.
NOT_HERE = {
    "W-H1": "no webhooks: the rules are in the definitions",
    "W-H12": "no field of a Task's status that nobody writes: its cost comes with its result",
    "W-H27": "the manager hands out no modules over MQTT; nothing is waited for where messages are taken",
}


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in found if node.name.startswith("test_"))


@pytest.mark.parametrize("about", SHOWN)
def test_a_defect_is_shown_by_tests_that_there_are(about: str) -> None:
    missing = {f"{file}::{name}" for file, names in SHOWN[about].items() for name in {*names} - names_in(file)}
    assert (missing, len(SHOWN[about]) > 0) == (set(), True)


def test_every_defect_is_in_the_table() -> None:
    numbered = [about.split()[0] for about in SHOWN if about.startswith("W-H")]
    assert numbered == [f"W-H{number}" for number in range(1, 28)]
    assert {*NOT_HERE} <= {*numbered}


# --- what is installed ------------------------------------------------------------------------------------------------


@pytest.mark.source
@pytest.mark.parametrize("overlay", ["default", "namespaced", "tls"])
def test_nothing_that_is_installed_stands_between_a_user_and_the_resources(api_server: ApiServer, overlay: str) -> None:
    path = ROOT / "packaging/kubernetes/overlays" / overlay
    documents = [d for d in yaml.safe_load_all(api_server.kubectl("kustomize", str(path))) if d]
    kinds = {document["kind"] for document in documents}
    assert not {kind for kind in kinds if "Webhook" in kind or kind in ("Certificate", "Issuer", "APIService")}
    definitions = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    assert len(definitions) == (0 if overlay == "namespaced" else len(KINDS))
    assert not [d for d in definitions if d["spec"].get("conversion", {}).get("strategy", "None") != "None"]
    assert "Secret" not in kinds  # keys are the user's own
    (manager,) = (document for document in documents if document["kind"] == "Deployment")
    (container,) = manager["spec"]["template"]["spec"]["containers"]
    assert not [a for a in container["args"] if a.startswith(("--client-key=", "--api-key="))]
    assert not [e for e in container.get("env", ()) if "KEY" in e["name"] and "value" in e]


# --- one manager for all that follows ---------------------------------------------------------------------------------


class Failing(Device):
    """A device whose guests trap."""

    async def run(self, start: Start) -> None:
        assert start.ext is not None
        self.end((start.id, start.ext.attempt), "", "wasm trap: unreachable", Reason.TRAP)


@dataclass
class Site:
    """A broker and a manager of two namespaces."""

    broker: MosquittoServer
    manager: ManagerProcess
    one: Workspace
    other: Workspace

    @contextmanager
    def device(self, device: Device) -> Iterator[None]:
        with plugged(device, self.broker.link_settings(device.id)):
            yield


KEY = f"key-{secrets.token_hex(8)}"  # of a Proplet, inline


@pytest.fixture(scope="module")
def shared(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    install_crds(api_server)
    directory = tmp_path_factory.mktemp("defects")
    broker = MosquittoServer(directory / "broker")
    broker.start()
    names = [f"defects-{secrets.token_hex(4)}" for _ in range(2)]
    for name in names:
        api_server.create_namespace(name)
    key = directory / "key"
    key.touch(mode=0o600)
    key.write_text(broker.identities["manager"].password)
    arguments = [a for a in manager_arguments(broker, api_server) if not a.startswith("--client-key")]
    arguments += [f"--namespace={name}" for name in names]
    arguments += [f"--client-key-file={key}", "--log-level=debug", "--liveliness-interval=1s"]
    try:
        with ManagerProcess(directory / "manager", arguments) as manager:
            manager.until_ready()
            yield Site(broker, manager, *(Workspace(api_server, name) for name in names))
    finally:
        broker.kill()
        for name in names:
            api_server.remove_namespace(name)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """It, empty again after the test."""
    yield shared
    for space in (shared.one, shared.other):
        space.kubectl("delete", ",".join(KINDS), "--all", "--timeout=50s")


def test_a_proplet_counts_its_own_tasks_and_not_those_of_a_namesake(site: Site) -> None:
    with site.device(Device("proplet-1", TOPICS)), site.device(Device("proplet-2", TOPICS)):
        for space, proplet_id, names in ((site.one, "proplet-1", ("a", "b")), (site.other, "proplet-2", ("a",))):
            space.apply(proplet_manifest("pi", proplet_id, site.broker.address))
            space.apply(*(task_manifest(name, propletSelector={"propletId": "pi"}) for name in names))
            for name in names:
                status = space.until("tasks", name, "completed")
                assert status["assignedProplet"] == "pi"
        for space, tasks in ((site.one, 2), (site.other, 1)):
            eventually(lambda space=space: space.status("proplets", "pi")["taskCount"] == tasks)  # noqa: B023


def test_a_failure_is_shown_as_one(site: Site) -> None:
    with site.device(Failing("proplet-1", TOPICS)):
        site.one.apply(proplet_manifest("pi", "proplet-1", site.broker.address), task_manifest("bad"))
        status = site.one.until("tasks", "bad", "failed")
        assert "unreachable" in status["error"]
        assert not status.get("results")
        completed = site.one.condition("tasks", "bad", "Completed")
        assert (completed["status"], completed["reason"]) == ("False", "Failed")
        eventually(lambda: "unreachable" in site.one.kubectl("get", "events", "--field-selector=reason=Failed"))


def test_a_proplet_that_is_not_there_is_waited_for_and_that_is_said(site: Site) -> None:
    device = Device("proplet-1", TOPICS)
    with site.device(Device("proplet-2", TOPICS)):
        site.one.apply(proplet_manifest("another", "proplet-2", site.broker.address))
        site.one.until("proplets", "another", "Running")
        site.one.apply(task_manifest("add", propletSelector={"propletId": "pi"}))
        told = eventually(lambda: site.one.condition("tasks", "add", "Scheduled"))
        assert (told["status"], told["reason"]) == ("False", "NoProplet")
        assert "pi, is not known" in told["message"]
        assert site.one.status("tasks", "add")["phase"] == "pending"
        events = eventually(lambda: site.one.kubectl("get", "events", "--field-selector=reason=NoProplet"))
        assert told["message"] in events
        with site.device(device):
            site.one.apply(proplet_manifest("pi", "proplet-1", site.broker.address))
            assert site.one.until("tasks", "add", "completed")["results"] == "42"
    assert len(device.runs) == 1


def test_a_profile_without_an_interval_runs(site: Site) -> None:
    device = Holding("proplet-1", TOPICS)
    with site.device(device):
        site.one.apply(proplet_manifest("pi", "proplet-1", site.broker.address))
        profile: dict[str, Any] = {"enabled": True}
        site.one.apply(
            task_manifest("one", monitoringProfile=profile),
            task_manifest("everywhere", monitoringProfile=profile, broadcast=True),
        )
        for name in ("one", "everywhere"):
            site.one.until("tasks", name, "running")
        profiles = [start.monitoring_profile for start in device.held.values()]
        assert [(p.enabled, p.interval > 0) for p in profiles if p is not None] == [(True, True)] * 2


def test_proplets_whose_ids_are_no_names_or_those_of_others_are_registered_too(
    api_server: ApiServer, namespace: str, shared: Site, tmp_path: Path
) -> None:
    space, odd = Workspace(api_server, namespace), Identity("Pi_4", "secret", Role.PROPLET)
    broker = MosquittoServer(tmp_path / "broker", [*IDENTITIES, odd])
    broker.start()
    arguments = [*manager_arguments(broker, api_server), f"--namespace={namespace}", "--register"]
    try:
        space.apply(proplet_manifest("proplet-1", "somebody-else", broker.address))
        with ManagerProcess(tmp_path / "manager", arguments):
            for proplet_id, known_as in (("Pi_4", "discovered-pi-4-"), ("proplet-1", "discovered-proplet-1")):
                with plugged(Device(proplet_id, TOPICS), broker.link_settings(proplet_id)):
                    task = f"on-{len(known_as)}"
                    space.apply(task_manifest(task, propletSelector={"propletId": proplet_id}))
                    assert space.until("tasks", task, "completed")["results"] == "42"
                    names = eventually(lambda: space.kubectl("get", "proplets", "-o", "name"))
                    assert f"/{known_as}" in names
    finally:
        broker.kill()


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_is_seen_in_logs_statuses_events_or_pages(site: Site, tmp_path: Path) -> None:
    space, broker = site.one, site.broker
    inline = proplet_manifest("inline", "proplet-1", broker.address)
    inline["spec"]["connectionConfig"]["clientKey"] = KEY
    held = {"proplet-1": f"first-{secrets.token_hex(8)}", "proplet-2": f"second-{secrets.token_hex(8)}"}
    space.kubectl("create", "secret", "generic", "broker", *(f"--from-literal={k}={v}" for k, v in held.items()))
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text(f"wrong-{secrets.token_hex(8)}")
    cluster = Cluster(space)
    with site.device(Failing("proplet-1", TOPICS)):
        farm = pod_proplet(space, broker, replicas=2, identitiesSecretRef={"name": "broker"})
        farm["spec"]["connectionConfig"]["clientId"] = "farmer"
        space.apply(inline, farm, task_manifest("bad"))
        space.until("tasks", "bad", "failed")
        eventually(cluster.names, "Deployments")
    arguments = [a for a in site.manager.arguments if not a.startswith(("--client-key", "--health", "--metrics"))]
    with ManagerProcess(tmp_path / "refused", [*arguments, f"--client-key-file={wrong}"]) as refused:
        eventually(lambda: "not authori" in refused.log.lower() or "refused" in refused.log.lower(), refused.log)
        seen = [refused.log, *(refused.ask(page)[1] for page in ("/readyz", "/metrics"))]
    seen += [site.manager.log, *(site.manager.ask(page)[1] for page in ("/readyz", "/metrics"))]
    seen.append(space.kubectl("get", "events", "-o", "json"))
    seen.append(space.kubectl("get", "deployments", "-o", "json"))
    for kind in KINDS:
        listed = json.loads(space.kubectl("get", kind, "-o", "json"))["items"]
        seen += [json.dumps([item.get("status", {}), item["metadata"].get("labels", {})]) for item in listed]
    for word in ("secretKeyRef", "wasm trap", "mqtt: connected", "proplet_mqtt_connected 0", "manager is at work"):
        assert any(word in text for text in seen), word  # it is what it is taken for
    passwords = [identity.password for identity in broker.identities.values()]
    hidden = [KEY, *held.values(), *passwords, wrong.read_text(), space.server.admin_token]
    assert [(secret, text[:200]) for secret in hidden for text in seen if secret in text] == []


@pytest.mark.parametrize(
    "connection",
    [
        {"clientKeySecretRef": {"name": "s", "key": "k"}},
        {"apiKey": KEY},
        {"channelId": ""},
        {"unknown": 1},
        {"mqttTimeout": "soon"},
    ],
    ids=lambda connection: next(iter(connection)),
)
def test_a_refusal_does_not_repeat_the_key(site: Site, connection: dict[str, Any]) -> None:
    manifest = proplet_manifest("pi", "proplet-1", site.broker.address)
    manifest["spec"]["connectionConfig"] |= {"clientKey": KEY, **connection}
    manifest["apiVersion"] = f"{GROUP}/v1"
    with pytest.raises(KubectlError) as refused:
        site.one.apply(manifest)
    assert KEY not in str(refused.value)
