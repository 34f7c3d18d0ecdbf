"""Events are told where kubectl shows them, within bounds, and trouble with them troubles nobody."""

import gc
import re
import weakref
from typing import Any

import anyio
import pytest

from proplet.manager.kubernetes_access import Access
from proplet.manager.kubernetes_api import KubernetesApi, open_api
from proplet.manager.kubernetes_events import (
    BURST,
    EVENTS,
    REFILL_S,
    SERIES_S,
    UPDATE_S,
    KubernetesEvents,
    open_kubernetes_events,
)
from proplet.manager.model import Meta, Task
from tests.support.kubernetes import ApiServer
from tests.support.registry import free_port

pytestmark = pytest.mark.anyio


class HandClock:
    """A monotonic clock that is set by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def task(namespace: str, name: str = "addition", uid: str = "0a") -> Task:
    return Task(Meta(name, namespace, uid=uid, version=7))


def sink(api: KubernetesApi, clock: HandClock | None = None) -> KubernetesEvents:
    return KubernetesEvents(api, "manager_1", clock=clock or HandClock())


def told(server: ApiServer, namespace: str) -> list[dict[str, Any]]:
    found = server.call("GET", EVENTS.path(namespace))["items"]
    return sorted(found, key=lambda event: str(event["eventTime"]))


async def test_kubectl_shows_what_was_told_of_whom(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        events = sink(api)
        events.emit(task(namespace), "Scheduled", "it goes to the proplet pi")
        events.emit(task(namespace), "Failed", "the module trapped ☃", warning=True)
        await events.flush()
    shown = api_server.kubectl("get", "events", "-n", namespace, "--no-headers")
    assert re.search(r"Normal\s+Scheduled\s+task/addition\s+it goes to the proplet pi", shown)
    assert re.search(r"Warning\s+Failed\s+task/addition\s+the module trapped ☃", shown)


async def test_what_is_told_is_sent_beside(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        async with open_kubernetes_events(api, "manager_1") as events:
            events.emit(task(namespace), "Scheduled", "it goes to the proplet pi")
        assert [event["reason"] for event in told(api_server, namespace)] == ["Scheduled"]


async def test_the_same_again_raises_a_count_and_not_at_every_time(api_server: ApiServer, namespace: str) -> None:
    clock = HandClock()
    async with open_api(Access(api_server.kubeconfig)) as api, anyio.create_task_group() as group:
        events = sink(api, clock)
        group.start_soon(events.serve)
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await until(lambda: len(told(api_server, namespace)) == 1)
        version = told(api_server, namespace)[0]["metadata"]["resourceVersion"]
        for _ in range(50):
            events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await anyio.wait_all_tasks_blocked()
        assert told(api_server, namespace)[0]["metadata"]["resourceVersion"] == version
        clock.now += UPDATE_S
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await until(lambda: "series" in told(api_server, namespace)[0])
        group.cancel_scope.cancel()
    (event,) = told(api_server, namespace)
    assert event["series"]["count"] == 52


async def until(condition: Any) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # it is in another process
            await anyio.sleep(0.02)


async def test_the_same_after_a_while_is_a_new_event(api_server: ApiServer, namespace: str) -> None:
    clock = HandClock()
    async with open_api(Access(api_server.kubeconfig)) as api:
        events = sink(api, clock)
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await events.flush()
        clock.now += SERIES_S + 1
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await events.flush()
    assert len(told(api_server, namespace)) == 2


async def test_one_resource_cannot_flood_the_server_nor_silence_another(api_server: ApiServer, namespace: str) -> None:
    clock = HandClock()
    async with open_api(Access(api_server.kubeconfig)) as api:
        events = sink(api, clock)
        for number in range(200):
            events.emit(task(namespace), "Retried", f"attempt {number}")
        events.emit(task(namespace, "other", "0b"), "Scheduled", "it goes to the proplet pi")
        clock.now += REFILL_S
        events.emit(task(namespace), "Completed", "at last")
        events.emit(task(namespace), "Again", "too soon")
        await events.flush()
    reasons = [event["reason"] for event in told(api_server, namespace)]
    assert sorted(reasons) == ["Completed", *["Retried"] * BURST, "Scheduled"]


async def test_an_event_that_the_server_forgot_is_told_anew(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        events = sink(api)
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await events.flush()
        api_server.kubectl("delete", "events", "--all", "-n", namespace)
        events.emit(task(namespace), "Pending", "no proplet has a gpu")
        await events.flush()
    (event,) = told(api_server, namespace)
    assert event["series"]["count"] == 2


async def test_what_is_too_long_is_cut(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api:
        events = sink(api)
        events.emit(task(namespace, "n" * 253), "R" * 200, "☃" * 1000)
        await events.flush()
    (event,) = told(api_server, namespace)
    assert event["regarding"]["name"] == "n" * 253
    assert set(event["note"]) == {"☃", "…"}


async def test_an_event_that_is_refused_holds_up_no_other(api_server: ApiServer, namespace: str) -> None:
    async with open_api(Access(api_server.kubeconfig)) as api, anyio.create_task_group() as group:
        events = sink(api)
        events.emit(task("Not_A_Namespace"), "Scheduled", "nowhere")
        events.emit(task(namespace, uid="0c"), "Scheduled", "it goes to the proplet pi")
        group.start_soon(events.serve)
        await until(lambda: told(api_server, namespace))
        group.cancel_scope.cancel()


async def test_without_a_server_telling_costs_nothing_and_is_bounded(api_server: ApiServer) -> None:
    config = api_server.kubeconfig.read_text()
    elsewhere = api_server.kubeconfig.with_name("kubeconfig-nowhere")
    elsewhere.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", config))
    async with open_api(Access(elsewhere)) as api, open_kubernetes_events(api, "manager_1") as events:
        for number in range(6000):
            events.emit(task("default", uid=str(number)), "Scheduled", "it goes to the proplet pi")
        await anyio.lowlevel.checkpoint()
        assert len(events._series) <= 4096


async def test_what_an_event_was_about_is_not_kept(api_server: ApiServer) -> None:
    class Annotations(dict[str, str]):
        """Like those of `kubectl apply`, which have a whole module in them."""

    async with open_api(Access(api_server.kubeconfig)) as api:
        events, annotations = sink(api), Annotations()
        kept = weakref.ref(annotations)
        events.emit(Task(Meta("addition", annotations=annotations)), "Failed", "it trapped")
        del annotations
        gc.collect()
        assert kept() is None
