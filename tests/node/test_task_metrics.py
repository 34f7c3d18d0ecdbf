"""What tasks use while they run, published as their monitoring profiles ask, by a real node."""

import json
from pathlib import Path

import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.codec import encode
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.node.test_latent_tasks import LOOP, deploy, invoke
from tests.node.test_usage import COUNTS
from tests.support.modules import module
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer, mosquitto  # noqa: F401
from tests.support.node import NodeProcess, Peer, open_peer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

EVERY_SECOND = wire.MonitoringProfile(interval=1.0)
SLEEPS = bytes(
    wasmtime.wat2wasm("""(module
      (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 60000000000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))""")
)


async def metrics(peer: Peer, task_id: str, least: int = 1) -> list[wire.TaskMetrics]:
    return await peer.until(  # type: ignore[no-any-return]
        lambda: found if len(found := peer.all(Route.TASK_METRICS, task_id)) >= least else None, what="metrics"
    )


async def test_a_task_shorter_than_an_interval_is_measured_once_at_its_end_if_a_profile_was_given(
    agent: NodeProcess, peer: Peer
) -> None:
    await peer.start("unasked", file=COUNTS, inputs=("1000",))
    await peer.start("short", file=COUNTS, inputs=("1000",), monitoring_profile=wire.MonitoringProfile())
    await peer.start("off", file=COUNTS, inputs=("9",), monitoring_profile=wire.MonitoringProfile(enabled=False))
    (last,) = await metrics(peer, "short")
    usage = (await peer.result("short")).ext.usage  # type: ignore[union-attr]
    assert usage is not None
    assert last.metrics.memory_bytes == usage.peak_memory_bytes == 3 * 65536
    assert last.aggregated is not None
    assert (last.aggregated.sample_count, last.aggregated.max_memory_usage) == (1, 3 * 65536)
    assert last.metrics.cpu_percent > 0
    assert last.ext == wire.MeterTerms(attempt=1, cpu_seconds=usage.cpu_seconds, final=True)
    await peer.result("off")
    await peer.result("unasked")
    assert not peer.all(Route.TASK_METRICS, "off")
    assert not peer.all(Route.TASK_METRICS, "unasked")


async def test_a_peer_of_the_reference_gets_its_own_shape_and_nothing_else(agent: NodeProcess, peer: Peer) -> None:
    await peer.start("old", monitoring_profile=wire.MonitoringProfile(), ext=None)
    (last,) = await metrics(peer, "old")
    told = json.loads(encode(last))
    assert told.keys() == {"task_id", "proplet_id", "metrics", "aggregated", "timestamp"}
    assert len(told["metrics"]) == 8
    assert len(told["aggregated"]) == 7


async def test_a_broadcast_task_is_measured_like_any_other(agent: NodeProcess, peer: Peer) -> None:
    await peer.start("all", file=LOOP, inputs=(), broadcast=True, proplet_id=None, monitoring_profile=EVERY_SECOND)
    first, second = (await metrics(peer, "all", 2))[:2]
    assert first.proplet_id == "proplet-1"
    assert first.metrics.cpu_percent > 10
    assert second.metrics.uptime_seconds > first.metrics.uptime_seconds
    assert second.aggregated is not None
    assert second.aggregated.sample_count == 2
    assert second.metrics.thread_count == second.metrics.file_descriptor_count == 0, "its worker is shared"
    await peer.send(Route.STOP, wire.Stop("all"))
    await peer.until(lambda: [m for m in peer.all(Route.TASK_METRICS, "all") if m.ext and m.ext.final])


async def test_a_task_with_a_process_of_its_own_has_that_processs_threads_and_files(
    agent: NodeProcess, peer: Peer
) -> None:
    waiting = module("component_waiting")
    profile = wire.MonitoringProfile(interval=1.0, collect_file_descriptors=False)
    await peer.start("waits", name="sleep", file=waiting, inputs=("60",), daemon=True, monitoring_profile=profile)
    one = (await metrics(peer, "waits"))[0].metrics
    assert one.thread_count >= 1
    assert one.file_descriptor_count == 0, "it is not to be collected"
    assert one.memory_bytes > 1024 * 1024, "the engine's, which nobody else uses"
    await peer.send(Route.STOP, wire.Stop("waits"))
    await peer.result("waits")


async def test_every_run_of_a_task_that_is_repeated_is_measured_and_the_result_has_the_sum(
    agent: NodeProcess, peer: Peer
) -> None:
    terms = wire.StartTerms(attempt=1, restart_policy=wire.RestartPolicy.ON_FAILURE, backoff_limit=1)
    traps = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "main") unreachable))'))
    await peer.start("again", file=traps, inputs=(), ext=terms, monitoring_profile=wire.MonitoringProfile())
    result = await peer.result("again")
    runs = await metrics(peer, "again", 2)
    assert [(run.ext.restarts, run.ext.final) for run in runs if run.ext] == [(0, True), (1, True)]
    assert result.ext is not None
    assert result.ext.usage is not None
    assert result.ext.usage.restarts == 1
    spent = sum(run.ext.cpu_seconds or 0 for run in runs if run.ext)
    assert result.ext.usage.cpu_seconds == pytest.approx(spent)


async def test_a_latent_task_is_measured_while_it_is_invoked_and_once_more_when_it_rests(
    agent: NodeProcess, peer: Peer
) -> None:
    await deploy(peer, file=COUNTS, inputs=("20000000",), monitoring_profile=EVERY_SECOND)
    for n in range(3):
        await invoke(peer, call=f"i{n}")
    await peer.until(
        lambda: [
            m
            for m in peer.all(Route.TASK_METRICS, "f")
            if m.ext and m.ext.invocations == 3 and not m.metrics.cpu_percent
        ]
    )
    spent = sum(m.metrics.cpu_percent for m in peer.all(Route.TASK_METRICS, "f"))
    assert spent > 0
    count = len(peer.all(Route.TASK_METRICS, "f"))
    await peer.start("meanwhile", file=SLEEPS, name="_start", inputs=(), monitoring_profile=EVERY_SECOND)
    await metrics(peer, "meanwhile", 3)
    assert len(peer.all(Route.TASK_METRICS, "f")) == count, "nothing new, nothing said"
    await peer.send(Route.STOP, wire.Stop("f"))
    await peer.until(
        lambda: [m for m in peer.all(Route.TASK_METRICS, "f") if m.ext and m.ext.final and m.ext.invocations == 3]
    )


async def test_what_runs_in_the_wasmtime_program_is_measured_as_that_process(
    tmp_path: Path,
    mosquitto: MosquittoServer,  # noqa: F811
) -> None:
    config = agent_config(mosquitto) + '[runtime]\nexternal = "wasmtime"\n'
    with NodeProcess(tmp_path / "host", config):
        settings = mosquitto.link_settings(MANAGER.username)
        async with open_peer(settings, Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
            await peer.send(Route.HELLO, wire.Hello("m"))
            await peer.until(lambda: peer.all(Route.INVENTORY), what="the agent")
            await peer.start("t", file=SLEEPS, name="_start", inputs=(), monitoring_profile=EVERY_SECOND)
            one = (await metrics(peer, "t"))[0].metrics
            assert one.thread_count > 1
            assert one.file_descriptor_count > 3
            assert one.memory_bytes > 1024 * 1024
            await peer.send(Route.STOP, wire.Stop("t"))
            await peer.result("t")
