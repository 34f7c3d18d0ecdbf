"""Which proplet gets a task, and what a person is told when none does."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from proplet.manager.model import Meta, PropletSelector, Resources, Task, TaskSpec
from proplet.manager.placement import Fleet, Peer
from tests.manager.worlds import proplet


def fleet_of(*peers: Peer, **kwargs: Any) -> Fleet:
    fleet = Fleet(connected=True, **kwargs)
    for peer in peers:
        fleet.show(peer)
    return fleet


def live(name: str, **kwargs: Any) -> Peer:
    return Peer(proplet(name, **kwargs), alive=True, tells=True)


def dead(name: str, **kwargs: Any) -> Peer:
    return Peer(proplet(name, **kwargs), why="last heard of at noon")


def task(uid: str = "u", namespace: str = "default", **spec: Any) -> Task:
    return Task(Meta("t", namespace, uid=uid), TaskSpec(**spec))


def test_ties_go_round() -> None:
    fleet = fleet_of(live("a"), live("b"), live("c"))
    assert Counter(fleet.place(task(), 0).proplet_id for _ in range(9)) == {"a": 3, "b": 3, "c": 3}


def test_the_least_loaded_proplet_is_chosen() -> None:
    fleet = fleet_of(live("a"), live("b"))
    for uid, where in [("1", "a"), ("2", "a"), ("3", "b")]:
        fleet.assign(uid, where)
    assert fleet.place(task(), 0).proplet_id == "b"
    fleet.assign("1", None)
    fleet.assign("2", "b")
    assert fleet.place(task(), 0).proplet_id == "a"


def test_many_tasks_spread_evenly() -> None:
    fleet = fleet_of(*(live(f"p{n}") for n in range(7)))
    for n in range(700):
        fleet.assign(str(n), fleet.place(task(), 0).proplet_id)
    assert {len(held) for held in fleet.held.values()} == {100}


def test_a_proplet_that_just_failed_a_task_is_the_last_choice() -> None:
    assert fleet_of(live("a"), live("b")).place(task(), 0, avoid="a").proplet_id == "b"
    assert fleet_of(live("a")).place(task(), 0, avoid="a").proplet_id == "a"


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ({"selector": PropletSelector("cam")}, "cam"),
        ({"selector": PropletSelector(match_labels={"site": "roof"})}, "cam"),
        ({"selector": PropletSelector(match_device_types=("gateway", "camera"))}, "cam"),
        ({"selector": PropletSelector(match_capabilities=("gpio", "h264"))}, "cam"),
        ({"preferred_proplet_type": "k8s"}, "pod"),
        ({"resources": Resources(memory_bytes=3 << 30)}, "pod"),
        ({"resources": Resources(cpu=4.0)}, "pod"),
        ({"resources": Resources(custom={"lora": "1"})}, "cam"),
    ],
)
def test_only_a_proplet_that_fits_is_chosen(spec: dict[str, Any], chosen: str) -> None:
    fleet = fleet_of(
        live(
            "cam",
            labels={"site": "roof"},
            device_type="camera",
            capabilities=("gpio",),
            tags=("h264",),
            memory=1 << 30,
            resources=Resources(cpu=2.0, custom={"lora": "2"}),
        ),
        live("pod", type="k8s", resources=Resources(cpu=8.0, memory_bytes=4 << 30, custom={"lora": "0"})),
    )
    assert {fleet.place(task(**spec), 0).proplet_id for _ in range(4)} == {chosen}


def test_a_pin_may_name_the_resource_or_the_wire_id() -> None:
    fleet = fleet_of(live("pi", connection={"clientId": "4711"}))
    for name in ("pi", "4711"):
        assert fleet.place(task(selector=PropletSelector(name)), 0).proplet_id == "4711"


def test_what_is_unknown_of_a_proplet_is_taken_to_suffice() -> None:
    fleet = fleet_of(live("a"))
    assert fleet.place(task(resources=Resources(cpu=64.0, memory_bytes=1 << 40)), 0).proplet_id == "a"


def test_a_declared_proplet_serves_its_own_namespace_and_one_that_came_by_itself_serves_all() -> None:
    fleet = fleet_of(live("a"))
    assert "it serves the namespace default" in fleet.place(task(namespace="edge"), 0).message
    fleet.show(live("b", declared=False))
    assert fleet.place(task(namespace="edge"), 0).proplet_id == "b"


@pytest.mark.parametrize(
    ("peers", "spec", "message"),
    [
        ([], {}, "no proplet is known yet: none has announced itself"),
        ([dead("pi-3")], {}, "no proplet is alive: pi-3 fits but is offline: last heard of at noon"),
        (
            [live("a"), live("b")],
            {"selector": PropletSelector(match_capabilities=("camera",))},
            "no proplet is alive that fits: a, b: it lacks the capability camera",
        ),
        (
            [live("a")],
            {"selector": PropletSelector("nobody")},
            "the proplet it asks for, nobody, is not known: it has neither announced itself nor been declared",
        ),
        (
            [live("a"), dead("pi-3")],
            {"selector": PropletSelector("pi-3")},
            "no proplet is alive that fits: pi-3 fits but is offline: last heard of at noon",
        ),
        (
            [live("a", memory=512 << 20)],
            {"resources": Resources(memory_bytes=1 << 30)},
            "no proplet is alive that fits: a: it has 512 MiB of memory, wanted are 1024 MiB",
        ),
        (
            [dead(f"p{n}") for n in range(5)],
            {},
            "no proplet is alive: "
            + "; ".join(f"p{n} fits but is offline: last heard of at noon" for n in range(3))
            + "; 2 more fit but are offline",
        ),
    ],
)
def test_the_message_says_why_nobody_can_have_the_task(peers: list[Peer], spec: dict[str, Any], message: str) -> None:
    placement = fleet_of(*peers).place(task(**spec), 0)
    assert (placement.proplet_id, placement.message, placement.crowded) == (None, message, False)


def test_a_full_proplet_gets_no_more_and_that_is_another_kind_of_waiting() -> None:
    fleet = fleet_of(live("a"), window=2)
    fleet.assign("1", "a")
    fleet.assign("2", "a")
    placement = fleet.place(task(), 0)
    assert (placement.proplet_id, placement.crowded) == (None, True)
    fleet.assign("1", None)
    assert fleet.place(task(), 0).proplet_id == "a"


def test_a_resting_proplet_gets_nothing_until_it_has_rested() -> None:
    fleet = fleet_of(live("a"))
    fleet.resting["a"] = 10.0
    assert fleet.place(task(), 9.9).crowded
    assert fleet.place(task(), 10.0).proplet_id == "a"


def test_what_was_found_is_not_remembered_beyond_a_change_of_the_fleet() -> None:
    fleet = fleet_of(live("a"))
    assert fleet.place(task(), 0).proplet_id == "a"
    fleet.show(replace(live("a"), alive=False, why="gone"))
    assert "a fits but is offline: gone" in fleet.place(task(), 0).message
    fleet.hide("a")
    assert "none has announced itself" in fleet.place(task(), 0).message
