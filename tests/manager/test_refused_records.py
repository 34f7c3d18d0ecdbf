"""A task that the store refuses to record, for whatever reason of its own, keeps no other from being driven."""

import time

import anyio
import pytest

from proplet.manager.book import HOLD_S
from proplet.manager.bus import Heard
from proplet.manager.model import Kind, Resource
from proplet.manager.phases import Phase
from proplet.manager.ports import RefusedError, ResourceTooLargeError
from proplet.manager.roster import AGAIN_S
from proplet.manager.store_memory import MemoryStore
from tests.manager.fakes import eventually, open_node

pytestmark = pytest.mark.anyio


class Refusing(MemoryStore):
    """Takes no record of what has this name."""

    refused = ""
    asked = 0
    error: type[RefusedError] = RefusedError

    async def record(self, resource: Resource) -> Resource:
        if resource.meta.name == self.refused:
            self.asked += 1
            raise self.error("a policy of the cluster says no")
        return await super().record(resource)


@pytest.mark.parametrize("error", [RefusedError, ResourceTooLargeError])
async def test_a_result_that_cannot_be_recorded_does_not_hold_up_what_is_behind_it_and_is_not_forgotten(
    error: type[RefusedError],
) -> None:
    store, ahead, acked = Refusing(), [0.0], []
    store.error = error
    async with open_node(store, monotonic=lambda: time.monotonic() + ahead[0]) as node:
        pi = node.proplet("pi-1")
        task = await node.create("poison")
        await node.until("poison", lambda t: t.status.phase is Phase.RUNNING)
        store.refused = "poison"
        pi.end(task.id, 1, results="42", silently=True)
        node.controller.hear(Heard(pi.done[task.id, 1], lambda: acked.append("once")))
        await eventually(lambda: store.asked > 0)
        assert acked == []  # its sender keeps it while there is hope
        with anyio.fail_after(20):
            while not acked:
                ahead[0] += HOLD_S / 4
                pi.beat()  # time passes, and its proplet lives
                asked = store.asked
                await eventually(lambda asked=asked: store.asked > asked or bool(acked))  # type: ignore[misc]
        store.refused = ""
        with anyio.fail_after(20):
            while (await node.get("poison")).status.phase is not Phase.COMPLETED:
                ahead[0] += HOLD_S / 4
                pi.beat()
                await anyio.sleep(0.05)
        assert (await node.get("poison")).status.results == "42"
        assert acked == ["once"]
        assert len(pi.started) == 1


async def test_how_long_it_is_kept_unacknowledged_is_for_the_caller_to_say() -> None:
    store, acked = Refusing(), list[str]()
    async with open_node(store, hold_s=0.0) as node:
        pi = node.proplet("pi-1")
        task = await node.create("poison")
        await node.until("poison", lambda t: t.status.phase is Phase.RUNNING)
        store.refused = "poison"
        pi.end(task.id, 1, results="42", silently=True)
        node.controller.hear(Heard(pi.done[task.id, 1], lambda: acked.append("at once")))
        await eventually(lambda: bool(acked))


class Strict(MemoryStore):
    """Makes no proplet of this name."""

    refused = "odd-one"
    asked = 0

    async def create(self, resource: Resource) -> Resource:
        if resource.meta.name == self.refused:
            self.asked += 1
            raise RefusedError("metadata.name: Invalid value")
        return await super().create(resource)


async def test_a_proplet_that_cannot_be_recorded_is_tried_seldom_and_keeps_no_other_from_being() -> None:
    store, ahead = Strict(), [0.0]

    async def swept() -> None:
        node.controller._roster.sweep()
        await eventually(lambda: node.controller._roster.idle)

    async with open_node(store, monotonic=lambda: time.monotonic() + ahead[0]) as node:
        odd = node.proplet("odd-one")
        await eventually(lambda: store.asked == 1)
        for number in range(20):
            odd.beat()
            await swept()
            node.proplet(f"pi-{number}")
        with anyio.fail_after(20):
            while len((await store.list(Kind.PROPLET)).items) < 20:  # noqa: ASYNC110 - somebody else writes
                await anyio.sleep(0.01)
        assert store.asked == 1
        store.refused = ""
        ahead[0] += AGAIN_S
        odd.beat()
        await swept()
        with anyio.fail_after(20):
            while (await store.list(Kind.PROPLET)).items[-1].meta.name != "odd-one":  # noqa: ASYNC110
                await anyio.sleep(0.01)
