"""The Proplet resources of further replicas, kept in a store without listing everything in it."""

from dataclasses import replace
from typing import cast

import pytest

from proplet.manager.deployments import sibling
from proplet.manager.model import Key, Kind, Meta, Proplet
from proplet.manager.pod_siblings import Siblings
from proplet.manager.pod_template import Identity
from proplet.manager.pods import LONGEST_PAUSE_S, pause_after
from proplet.manager.ports import Listing
from proplet.manager.store_memory import MemoryStore
from tests.manager.test_deployments import proplet

pytestmark = pytest.mark.anyio

THREE = [Identity(name, ("ids", name)) for name in ("one", "two", "three")]


class Unlisted(MemoryStore):
    """A store that is asked for single resources only."""

    async def list(self, kind: Kind) -> Listing:
        raise AssertionError("a look at one Proplet lists none")


async def names(siblings: Siblings) -> list[str]:
    return sorted(other.meta.name for other in await siblings.of("u-1"))


async def test_there_are_as_many_as_identities_and_no_look_lists_all_proplets() -> None:
    store, asked = Unlisted(), proplet(replicas=3)
    siblings = Siblings(store)
    assert await siblings.keep(asked, THREE) == []
    assert await names(siblings) == ["farm-1", "farm-2"]
    assert await siblings.keep(asked, THREE) == []
    newer = proplet(replicas=3, logLevel="debug")
    assert await siblings.keep(newer, THREE) == []
    assert {other.spec.k8s["logLevel"] for other in await siblings.of("u-1")} == {"debug"}
    assert await siblings.keep(newer, THREE[:2]) == []
    assert await names(siblings) == ["farm-1"]


async def test_a_name_that_another_proplet_has_is_said_and_that_proplet_is_left() -> None:
    store, asked = Unlisted(), proplet(replicas=2)
    other = await store.create(Proplet(Meta("farm-1", "here")))
    assert await Siblings(store).keep(asked, THREE[:2]) == ["farm-1"]
    assert await store.get(Kind.PROPLET, Key("farm-1", "here")) == other


async def test_those_of_another_turn_that_were_not_told_yet_are_taken_over() -> None:
    store, asked = Unlisted(), proplet(replicas=2)
    await store.create(sibling(replace(asked, spec=proplet(logLevel="warn").spec), 1, THREE[1]))
    siblings = Siblings(store)
    assert await siblings.keep(asked, THREE[:2]) == []
    (found,) = await siblings.of("u-1")
    assert "logLevel" not in found.spec.k8s


async def test_what_the_watch_tells_is_known_until_it_tells_the_end() -> None:
    store, asked = Unlisted(), proplet(replicas=2)
    made = cast("Proplet", await store.create(sibling(asked, 1, THREE[1])))
    siblings = Siblings(store)
    siblings.take(asked)  # no sibling
    siblings.take(made)
    assert await names(siblings) == ["farm-1"]
    siblings.take(made, gone=True)
    assert await names(siblings) == []
    siblings.take_all([asked, made])
    await store.delete(Kind.PROPLET, made.meta.key)
    assert await names(siblings) == []  # told late


def test_the_pause_after_conflicts_grows_and_is_bounded() -> None:
    pauses = [pause_after(conflicts) for conflicts in range(40)]
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.1
    assert pauses[-1] == LONGEST_PAUSE_S
