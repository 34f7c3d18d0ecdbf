"""Of several managers at most one holds the Lease, whatever their clocks say."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import KubernetesApi, open_api
from proplet.manager.kubernetes_lease import LEASES, Lease, LeaseLostError, LeaseTerms, held_lease
from tests.support.kubernetes import MERGE_PATCH, ApiServer

pytestmark = pytest.mark.anyio


class HandClock:
    """A monotonic clock that is set by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def terms(namespace: str, identity: str, **changed: Any) -> LeaseTerms:
    return LeaseTerms("manager", namespace, identity, **changed)


def lease_of(server: ApiServer, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = server.call("GET", LEASES.path(namespace, "manager"))["spec"]
    return spec


def give_to(server: ApiServer, namespace: str, identity: str) -> None:
    change = {"spec": {"holderIdentity": identity}}
    server.call("PATCH", LEASES.path(namespace, "manager"), change, content_type=MERGE_PATCH)


async def test_the_first_takes_it_and_kubectl_shows_who(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        assert await Lease(api, terms(namespace, "first")).attempt()
        assert not await Lease(api, terms(namespace, "second")).attempt()
    assert "first" in api_server.kubectl("get", "lease", "manager", "-n", namespace)
    assert lease_of(api_server, namespace)["leaseTransitions"] == 0


async def test_of_many_that_try_at_once_exactly_one_gets_it(api_server: ApiServer, namespace: str) -> None:
    won: list[str] = []

    async def attempt(api: KubernetesApi, identity: str) -> None:
        if await Lease(api, terms(namespace, identity)).attempt():
            won.append(identity)

    async with open_api(Access(api_server.kubeconfig)) as api, anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(attempt, api, f"m{number}")
    assert won == [lease_of(api_server, namespace)["holderIdentity"]]


async def test_one_that_is_not_renewed_is_taken_after_it_was_seen_unchanged_for_its_duration(
    api_server: ApiServer, namespace: str
) -> None:
    clock = HandClock()
    async with open_api(Access(api_server.kubeconfig)) as api:
        first = Lease(api, terms(namespace, "first"))
        second = Lease(api, terms(namespace, "second"), clock)
        assert await first.attempt()
        assert not await second.attempt()
        clock.now += 14.9
        assert not await second.attempt()
        assert await first.attempt()  # it renews just in time
        clock.now += 0.2
        assert not await second.attempt()
        clock.now += 14.9
        assert not await second.attempt()
        clock.now += 0.2
        assert await second.attempt()
        assert not await first.attempt()
        assert lease_of(api_server, namespace)["leaseTransitions"] == 1


@pytest.mark.parametrize("time_of_day", [0.0, 4e9], ids=["1970", "2096"])
async def test_the_time_of_day_decides_nothing(api_server: ApiServer, namespace: str, time_of_day: float) -> None:
    """A holder whose clock is wrong, or stands still, keeps it as long as it renews; and loses it when it does not."""
    clock = HandClock()
    async with open_api(Access(api_server.kubeconfig)) as api:
        first = Lease(api, terms(namespace, "first"), wall=lambda: time_of_day)
        second = Lease(api, terms(namespace, "second"), clock)
        assert await first.attempt()
        for _ in range(3):
            assert not await second.attempt()
            clock.now += 14
            give_to(api_server, namespace, "first")  # the same again: no new version
            server_time = {"spec": {"acquireTime": f"2026-01-01T00:00:0{_}.000000Z"}}
            api_server.call("PATCH", LEASES.path(namespace, "manager"), server_time, content_type=MERGE_PATCH)
        assert not await second.attempt()
        clock.now += 16
        assert await second.attempt()


async def test_a_released_one_is_free_at_once(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        async with held_lease(api, terms(namespace, "first")):
            assert lease_of(api_server, namespace)["holderIdentity"] == "first"
            second = Lease(api, terms(namespace, "second"))
            assert not await second.attempt()
        assert lease_of(api_server, namespace)["holderIdentity"] == ""
        assert await second.attempt()


async def test_who_lets_go_releases_only_what_is_its_own(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        first = Lease(api, terms(namespace, "first"))
        assert await first.attempt()
        give_to(api_server, namespace, "second")
        await first.release()
    assert lease_of(api_server, namespace)["holderIdentity"] == "second"


async def lead(api: KubernetesApi, mine: LeaseTerms, begun: Callable[[], None], ended: Callable[[], None]) -> None:
    with anyio.fail_after(30):
        async with held_lease(api, mine):
            begun()
            try:
                await anyio.sleep_forever()
            finally:
                ended()


async def test_the_block_is_cancelled_when_another_holds_it(api_server: ApiServer, namespace: str) -> None:
    ended: list[str] = []
    mine = terms(namespace, "first", retry_s=0.05)
    async with open_api(Access(api_server.kubeconfig)) as api:
        with pytest.raises(LeaseLostError, match="now held by second"):
            await lead(api, mine, lambda: give_to(api_server, namespace, "second"), lambda: ended.append("block"))
    assert ended == ["block"]
    assert lease_of(api_server, namespace)["holderIdentity"] == "second"


async def test_the_block_is_cancelled_when_the_server_does_not_answer(private_api_server: ApiServer) -> None:
    """At its deadline, while for everybody else it still holds the Lease."""
    server = private_api_server
    short = terms("default", "first", duration_s=40, renew_deadline_s=1.0, retry_s=0.2)
    async with open_api(Access(server.kubeconfig)) as api:
        with pytest.raises(LeaseLostError, match="could not be renewed for 1 s"):
            await lead(api, short, server.pause, server.resume)


async def test_a_lease_that_was_deleted_is_made_again(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        first = Lease(api, terms(namespace, "first"))
        assert await first.attempt()
        api_server.kubectl("delete", "lease", "manager", "-n", namespace)
        assert await first.attempt()
        assert lease_of(api_server, namespace)["holderIdentity"] == "first"


def test_terms_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="retry < renew deadline < duration"):
        LeaseTerms(duration_s=5, renew_deadline_s=5.0)


async def test_what_was_taken_so_late_that_it_may_be_over_is_not_begun_with(
    api_server: ApiServer, namespace: str
) -> None:
    clock, late = HandClock(), [12.0, 0.0]

    class Slow(Lease):
        async def attempt(self) -> bool:
            done = await super().attempt()
            clock.now += late.pop(0)
            return done

    async with open_api(Access(api_server.kubeconfig)) as api:
        await Slow(api, terms(namespace, "first", retry_s=0.01), clock).acquire()
    assert late == []
