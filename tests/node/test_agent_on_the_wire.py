"""What a manager on the wire sees of an agent: one process, a real broker, a real worker."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from proplet.agent import wire
from proplet.agent.topics import Route, Topics
from tests.node.conftest import agent_config
from tests.support.daemon import ProcessEndedError
from tests.support.mosquitto import CHANNEL, DOMAIN, MANAGER, PROPLET, MosquittoServer
from tests.support.node import ADDITION, NodeProcess, Peer, open_peer

pytestmark = [pytest.mark.anyio, pytest.mark.mosquitto]

LOOP = bytes(wasmtime.wat2wasm('(module (func (export "main") (loop br 0)))'))
TRAP = bytes(wasmtime.wat2wasm('(module (func (export "main") unreachable))'))
IMPORT = bytes(wasmtime.wat2wasm('(module (import "env" "magic" (func)) (func (export "main")))'))


async def test_a_started_task_is_answered_with_its_result_and_what_it_cost(agent: NodeProcess, peer: Peer) -> None:
    await peer.start("t1")
    result = await peer.result("t1")
    assert (result.results, result.error, result.proplet_id) == ("42", None, "proplet-1")
    assert result.ext is not None
    assert (result.ext.attempt, result.ext.reason) == (1, wire.Reason.OK)
    usage = result.ext.usage
    assert usage is not None
    assert usage.start_kind == "cold"
    assert 0 < (usage.cpu_seconds or 0) < 5
    assert {"queue", "fetch", "compile", "run", "total"} <= usage.wall_seconds.keys()


async def test_a_manager_that_connects_says_hello_and_learns_who_is_there(agent: NodeProcess, peer: Peer) -> None:
    await peer.send(Route.HELLO, wire.Hello("m"))
    about = await peer.until(lambda: peer.all(Route.CREATE))
    inventory = await peer.until(lambda: peer.all(Route.INVENTORY))
    assert about[0].proplet_id == inventory[0].proplet_id == "proplet-1"
    assert about[0].ext == wire.Announcement(encodings=("cbor",), topics=("own", "inventory", "logs", "progress"))
    assert about[0].metadata.cpu_arch
    assert about[0].metadata.total_memory_bytes > 0


async def test_an_agent_beats_and_measures_itself(agent: NodeProcess, peer: Peer) -> None:
    await peer.until(lambda: len(peer.all(Route.ALIVE)) >= 2)
    metrics = (await peer.until(lambda: peer.all(Route.METRICS)))[0]
    assert metrics.memory_metrics.rss_bytes > 10_000_000
    assert metrics.cpu_metrics.user_seconds > 0
    assert metrics.timestamp > 1.7e9


async def test_commands_on_the_proplets_own_topic_are_obeyed(agent: NodeProcess, peer: Peer) -> None:
    await peer.send(Route.OWN_START, wire.Start("t1", "main", file=ADDITION, inputs=("1", "2")))
    assert (await peer.result("t1")).results == "3"


async def test_a_start_in_the_words_of_the_first_era_is_obeyed(agent: NodeProcess, peer: Peer) -> None:
    raw = {"id": "t1", "name": "main", "state": 0, "image_url": "", "file": base64.b64encode(ADDITION).decode(),
           "inputs": [10, 32], "cli_args": None, "daemon": False, "env": None, "monitoringProfile": None}  # fmt: skip
    await peer.send(Route.START, None, raw=json.dumps(raw).encode())
    result = await peer.result("t1")
    assert (result.results, result.ext and result.ext.attempt) == ("42", None)


async def test_a_busy_guest_is_stopped_and_reported(agent: NodeProcess, peer: Peer) -> None:
    terms = wire.StartTerms(attempt=1, topics=("progress",))
    await peer.start("t1", file=LOOP, inputs=(), ext=terms)
    await peer.until(lambda: [p for p in peer.all(Route.PROGRESS, "t1") if p.stage == "running"])
    await peer.send(Route.STOP, wire.Stop("t1", proplet_id="proplet-1"))
    result = await peer.result("t1")
    assert result.error == "Task t1 was stopped before completion"
    assert result.ext is not None
    assert result.ext.reason is wire.Reason.STOPPED


async def test_a_task_ends_at_its_deadline(agent: NodeProcess, peer: Peer) -> None:
    await peer.start("t1", file=LOOP, inputs=(), ext=wire.StartTerms(attempt=1, deadline_s=0.3))
    result = await peer.result("t1")
    assert result.ext is not None
    assert result.ext.reason is wire.Reason.TIMEOUT


async def test_a_running_task_is_measured_by_itself(agent: NodeProcess, peer: Peer) -> None:
    profile = wire.MonitoringProfile(interval=1.0)
    await peer.start("t1", file=LOOP, inputs=(), monitoring_profile=profile)
    sample = (await peer.until(lambda: peer.all(Route.TASK_METRICS, "t1")))[0]
    assert sample.metrics.cpu_percent > 10
    assert sample.metrics.memory_bytes == 0, "the guest has no memory; the worker's own must not be reported as its"
    await peer.send(Route.STOP, wire.Stop("t1"))
    await peer.result("t1")


async def test_a_repeated_start_of_a_finished_attempt_is_answered_with_the_same_result(
    agent: NodeProcess, peer: Peer
) -> None:
    await peer.start("t1")
    first = await peer.result("t1")
    await peer.start("t1", inputs=("1", "1"))
    again = await peer.until(lambda: peer.all(Route.RESULTS, "t1")[1:])
    assert again[0] == first


async def test_an_invocation_of_an_unknown_task_is_answered_in_the_words_the_reference_looks_for(
    agent: NodeProcess, peer: Peer
) -> None:
    await peer.send(Route.INVOKE, wire.Invoke("t9", "i1", proplet_id="proplet-1"))
    answer = (await peer.until(lambda: peer.all(Route.INVOKE_RESULTS)))[0]
    assert (answer.task_id, answer.invocation_id) == ("t9", "i1")
    assert "has not been precompiled" in answer.error


def start_json(task_id: str = "bad", **change: Any) -> bytes:
    raw = {"id": task_id, "name": "main", "file": base64.b64encode(ADDITION).decode(), "inputs": ["10", "32"]}
    return json.dumps({**raw, **change}).encode()


@pytest.mark.parametrize(
    ("payload", "reason", "words"),
    [
        (start_json(name=7), "invalid_command", "name must be a string"),
        (start_json(file="!!"), "invalid_command", "not standard base64"),
        (start_json(file=None), "invalid_command", "either file or image_url must be provided"),
        (
            start_json(name="nope", file=base64.b64encode(LOOP).decode().replace("bWFpbg", "bWFpbg")),
            "unknown_export",
            None,
        ),
        (start_json(inputs=["1"]), "invalid_arguments", "expected 2 arguments but got 1"),
        (start_json(inputs=["1", "4294967296"]), "invalid_arguments", "4294967296"),
        (start_json(inputs=["1", "x"]), "invalid_arguments", "x"),
        (start_json(file=base64.b64encode(ADDITION[:30]).decode()), "invalid_module", None),
        (start_json(file=base64.b64encode(b"no wasm at all").decode()), "invalid_module", None),
        (start_json(file=base64.b64encode(IMPORT).decode(), inputs=[]), "missing_import", "magic"),
        (start_json(file=base64.b64encode(TRAP).decode(), inputs=[]), "trap", "unreachable"),
        (start_json(file=None, image_url="127.0.0.1:1/no/such:1"), "module_unavailable", "127.0.0.1:1"),
        (start_json(file=None, image_url="Not A Reference"), "module_unavailable", None),
        (start_json(latent=True, daemon=True), "not_supported", "cannot be both"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
async def test_bad_input_gets_a_failed_result_that_says_why(
    agent: NodeProcess, peer: Peer, payload: bytes, reason: str, words: str | None
) -> None:
    if reason == "unknown_export":
        other = bytes(wasmtime.wat2wasm('(module (func (export "other")))'))
        payload = start_json(name="nope", file=base64.b64encode(other).decode(), inputs=[])
        words = "other"
    await peer.send(Route.START, None, raw=payload)
    result = await peer.result("bad")
    assert result.ext is not None
    assert result.ext.reason is not None
    assert (result.ext.reason.value, result.results) == (reason, "")
    assert (words or "") in (result.error or "")
    assert "\n" not in (result.error or "").strip()
    await peer.start("good")
    assert (await peer.result("good")).results == "42"


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\x00", b"[]", b'{"name": "main"}', b'{"id": 7}', b"x" * 200_000])
async def test_what_cannot_be_answered_is_logged_and_hurts_nobody(
    agent: NodeProcess, peer: Peer, payload: bytes
) -> None:
    for route in (Route.START, Route.STOP, Route.INVOKE, Route.HELLO):
        await peer.send(route, None, raw=payload)
    await peer.start("good")
    assert (await peer.result("good")).results == "42"
    assert ("was refused and its sender cannot be told" in agent.log) or payload == b'{"id": 7}'
    assert "Traceback" not in agent.log


async def test_results_wait_for_a_broker_that_is_away(
    agent: NodeProcess, peer: Peer, mosquitto: MosquittoServer
) -> None:
    await peer.start("t1", file=LOOP, inputs=(), ext=wire.StartTerms(attempt=1, deadline_s=1.0, topics=("progress",)))
    await peer.until(lambda: peer.all(Route.PROGRESS, "t1"))
    mosquitto.kill()
    mosquitto.forget()
    await peer.until(lambda: not peer.connected)
    mosquitto.start()
    assert (await peer.result("t1", 30)).ext.reason is wire.Reason.TIMEOUT  # type: ignore[union-attr]


async def test_an_agent_that_dies_is_said_to_be_offline_by_its_will(agent: NodeProcess, peer: Peer) -> None:
    await peer.until(lambda: peer.all(Route.ALIVE))
    agent.kill()
    await peer.until(lambda: [a for a in peer.all(Route.ALIVE) if a.status == "offline"])


async def test_an_agent_that_is_stopped_says_goodbye_and_ends_with_zero(agent: NodeProcess, peer: Peer) -> None:
    await peer.until(lambda: peer.all(Route.ALIVE))
    assert agent.stop() == 0
    await peer.until(lambda: [a for a in peer.all(Route.ALIVE) if a.status == "offline"])
    assert "Traceback" not in agent.log


async def test_a_task_that_ran_when_the_node_was_killed_is_reported_as_interrupted(
    agent: NodeProcess, peer: Peer
) -> None:
    await peer.start("t1", file=LOOP, inputs=(), ext=wire.StartTerms(attempt=1, topics=("progress",)))
    await peer.until(lambda: [p for p in peer.all(Route.PROGRESS, "t1") if p.stage == "running"])
    agent.kill()
    agent.start()
    result = await peer.result("t1")
    assert result.ext is not None
    assert result.ext.reason is wire.Reason.INTERRUPTED


async def test_a_task_that_ran_when_the_node_was_killed_runs_again_where_its_policy_says_so(
    agent: NodeProcess, peer: Peer
) -> None:
    terms = wire.StartTerms(
        attempt=1, topics=("progress",), restart_policy=wire.RestartPolicy.ON_FAILURE, backoff_limit=1, deadline_s=1.0
    )
    await peer.start("t1", file=LOOP, inputs=(), ext=terms)
    await peer.until(lambda: [p for p in peer.all(Route.PROGRESS, "t1") if p.stage == "running"])
    agent.kill()
    agent.start()
    result = await peer.result("t1")
    assert result.ext is not None
    assert (result.ext.reason, result.ext.restarts) == (wire.Reason.TIMEOUT, 1)


async def test_a_second_node_on_the_same_state_directory_is_refused(agent: NodeProcess) -> None:
    second = NodeProcess(agent.directory.parent / "second", agent.config.read_text().replace(
        'state_dir = "state"', f'state_dir = "{agent.directory}/state"'))  # fmt: skip
    with pytest.raises(ProcessEndedError, match="another node") as caught:
        second.start()
    assert caught.value.code == 69
    assert str(agent.pid) in caught.value.log
    assert "Traceback" not in caught.value.log


async def test_the_agent_is_ready_without_a_broker(tmp_path: Any, mosquitto: MosquittoServer) -> None:
    mosquitto.stop()
    with NodeProcess(tmp_path / "lonely", agent_config(mosquitto)) as node:
        assert "ready: agent" in node.log


async def test_a_node_with_a_broker_of_its_own_still_uses_the_one_it_is_told(
    tmp_path: Path, mosquitto: MosquittoServer
) -> None:
    config = agent_config(mosquitto) + "[broker]\nport = 0\n"
    settings = mosquitto.link_settings(MANAGER.username)
    with NodeProcess(tmp_path / "both", config) as node:
        async with open_peer(settings, Topics(DOMAIN, CHANNEL), PROPLET.username) as peer:
            await peer.send(Route.HELLO, wire.Hello("m"))
            await peer.until(lambda: peer.all(Route.INVENTORY))
            await peer.start("t1")
            assert (await peer.result("t1")).results == "42"
        assert "broker (mosquitto)" in node.log
