"""Who is alive, who is lost, and what of it is written down."""

import pytest

from proplet.agent.wire import Alive, Announcement, Discovery, Metadata
from proplet.manager.exchange import Moment, Policy
from proplet.manager.model import Meta, Proplet, PropletPhase, PropletSpec, PropletStatus
from proplet.manager.placement import Fleet
from proplet.manager.registry import HISTORY, Registry
from tests.manager.fakes import OURS
from tests.manager.worlds import EPOCH


class Watch:
    """A registry and a clock."""

    def __init__(self, *, connected: bool = True) -> None:
        self.fleet = Fleet()
        self.registry = Registry(self.fleet, Policy(), ("manager",))
        self.mono = 1000.0
        if connected:
            self.registry.connected(self.at)

    @property
    def at(self) -> Moment:
        return Moment(EPOCH + self.mono, self.mono)

    def after(self, seconds: float) -> set[str]:
        self.mono += seconds
        return set(self.registry.sweep(self.at))

    def beat(self, name: str = "pi", status: str = "alive") -> str | None:
        return self.registry.heard(Alive(name, status), self.at)

    def record(self, name: str = "pi") -> PropletStatus:
        """Write down what is wanted, as the roster does."""
        wanted, known = self.registry.wanted(name, self.at), self.registry.known(name)
        assert known is not None
        status = wanted or known[0].status
        self.registry.learn(Proplet(known[0].meta, known[0].spec, status), self.at)
        return status

    def life(self, name: str = "pi") -> tuple[bool, bool]:
        peer = self.fleet.peers[name]
        return peer.alive, peer.lost


def test_a_heartbeat_makes_a_proplet_and_further_ones_are_no_news() -> None:
    watch = Watch()
    assert watch.beat() == "pi"
    assert watch.record().phase is PropletPhase.RUNNING
    for _ in range(30):
        watch.after(9)
        assert watch.beat() is None
        assert watch.registry.wanted("pi", watch.at) is None
    assert len(watch.registry.liveness("pi", watch.at).history) == HISTORY


def test_an_offline_of_somebody_unknown_makes_no_proplet() -> None:
    watch = Watch()
    assert watch.beat("proxy", "offline") is None
    assert watch.beat("proxy", "offline") is None
    assert watch.fleet.peers == {}
    assert watch.registry.known("proxy") is None


@pytest.mark.parametrize("name", ["manager", "", "a/b", "a+b", "#", "x" * 300])
def test_what_is_no_proplets_id_makes_no_proplet(name: str) -> None:
    watch = Watch()
    assert watch.beat(name) is None
    assert watch.registry.discovered(Discovery(name, ext=OURS), watch.at) is None
    assert watch.fleet.peers == {}


def test_silence_for_half_a_minute_is_a_loss() -> None:
    watch = Watch()
    watch.beat()
    assert watch.after(30) == set()
    assert watch.life() == (True, False)
    assert watch.after(1) == {"pi"}
    assert watch.life() == (False, True)
    assert watch.record().phase is PropletPhase.OFFLINE
    assert watch.registry.liveness("pi", watch.at).reason == "no heartbeat for 31 s"
    assert watch.beat() == "pi"
    assert watch.life() == (True, False)


def test_a_will_marks_offline_at_once_and_lost_after_a_grace() -> None:
    watch = Watch()
    watch.beat()
    assert watch.beat(status="offline") == "pi"
    assert watch.life() == (False, False)
    assert watch.record().phase is PropletPhase.OFFLINE
    assert watch.registry.liveness("pi", watch.at).reason == "said offline"
    assert watch.after(15) == set()
    assert watch.after(1) == {"pi"}
    assert watch.life() == (False, True)


def test_an_agent_that_only_restarted_is_not_lost() -> None:
    watch = Watch()
    watch.beat()
    watch.beat(status="offline")
    watch.after(5)
    assert watch.registry.discovered(Discovery("pi", ext=OURS), watch.at) == "pi"
    assert watch.after(20) == set()
    assert watch.life() == (True, False)


def test_nobody_is_lost_while_the_manager_itself_is_deaf() -> None:
    watch = Watch()
    watch.beat()
    watch.registry.disconnected()
    assert watch.after(10_000) == set()
    assert watch.life() == (True, False)
    watch.registry.connected(watch.at)
    assert watch.after(29) == set()
    assert watch.after(2) == {"pi"}
    assert watch.life() == (False, True)


def test_after_a_restart_recorded_proplets_are_given_time_to_speak() -> None:
    watch = Watch(connected=False)
    record = Proplet(Meta("pi", uid="1"), PropletSpec(), PropletStatus(PropletPhase.RUNNING, last_seen=EPOCH))
    watch.registry.learn(record, watch.at)
    assert watch.life() == (False, False)
    watch.after(500)
    watch.registry.connected(watch.at)
    watch.after(30)
    assert watch.life() == (False, False)
    assert watch.registry.wanted("pi", watch.at) is None  # not yet known to be offline
    watch.after(1)
    assert watch.life() == (False, True)
    assert watch.record().phase is PropletPhase.OFFLINE


def test_the_fleet_is_settled_once_everybody_had_time_to_speak() -> None:
    watch = Watch()
    watch.after(30)
    assert not watch.fleet.settled
    watch.after(1)
    assert watch.fleet.settled


def test_a_discovery_is_written_down_when_it_says_something_new() -> None:
    watch = Watch()
    metadata = Metadata(cpu_arch="aarch64", total_memory_bytes=1 << 30)
    assert watch.registry.discovered(Discovery("pi", metadata=metadata, ext=OURS), watch.at) == "pi"
    status = watch.record()
    assert (status.metadata, status.extensions, status.encodings) == (metadata, OURS.topics, ("cbor",))
    assert watch.fleet.peers["pi"].tells
    watch.after(5)
    assert watch.registry.discovered(Discovery("pi", metadata=metadata, ext=OURS), watch.at) is None
    assert watch.registry.wanted("pi", watch.at) is None


def test_a_proplet_of_the_reference_with_the_id_of_one_of_ours_is_one_of_the_reference() -> None:
    watch = Watch()
    watch.registry.discovered(Discovery("pi", ext=OURS), watch.at)
    watch.record()
    watch.registry.discovered(Discovery("pi"), watch.at)
    assert not watch.fleet.peers["pi"].tells
    assert watch.registry.announcement("pi") == Announcement(v=0)


def test_what_was_recorded_of_a_proplet_holds_until_it_speaks() -> None:
    watch = Watch()
    status = PropletStatus(PropletPhase.RUNNING, extensions=OURS.topics, encodings=("cbor",))
    watch.registry.learn(Proplet(Meta("pi", uid="1"), PropletSpec(), status), watch.at)
    assert watch.fleet.peers["pi"].tells
    announced = watch.registry.announcement("pi")
    assert announced is not None
    assert announced.encodings == ("cbor",)


def test_a_deleted_record_of_a_live_proplet_comes_back_with_its_next_heartbeat() -> None:
    watch = Watch()
    watch.registry.discovered(Discovery("pi", ext=OURS), watch.at)
    watch.record()
    known = watch.registry.known("pi")
    assert known is not None
    watch.registry.forget(known[0], watch.at)
    assert watch.fleet.peers == {}
    assert watch.beat() == "pi"
    wanted = watch.registry.wanted("pi", watch.at)
    assert wanted is not None
    assert wanted.extensions == OURS.topics


def test_conditions_change_their_time_only_with_their_truth() -> None:
    watch = Watch()
    watch.beat()
    first = watch.record().conditions
    assert [(c.type, c.status, c.reason) for c in first] == [
        ("Ready", True, "PropletReady"),
        ("Connected", True, "PropletOnline"),
    ]
    watch.after(5)
    watch.registry.discovered(Discovery("pi", ext=OURS), watch.at)
    assert watch.record().conditions == first
    watch.beat(status="offline")
    assert all(not c.status and c.last_transition_time == watch.at.wall for c in watch.record().conditions)
