"""Commands about resources, against a node's API over its socket."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from proplet.agent.wire import LogLines
from proplet.manager.api import ApiSettings
from proplet.manager.job_plan import HELD
from proplet.manager.model import Key, Kind, Meta, Proplet, PropletPhase, PropletStatus, Task
from proplet.manager.phases import Phase
from proplet.manager.store_memory import MemoryStore
from proplet.manager.works import open_works
from tests.api.fakes import TOKEN, Node, open_node
from tests.cli.command import COMMAND, environment, proplet

pytestmark = pytest.mark.anyio

FILE = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL"
TASK = f"""\
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: Task
metadata: {{name: NAME}}
spec: {{name: NAME, functionName: main, file: {FILE}, inputs: [10, 32]}}
"""


def manifest(*names: str) -> bytes:
    return "---\n".join(TASK.replace("NAME", name) for name in names).encode()


def aged(table: str) -> list[str]:
    """Return a table's lines with the last column's ages made equal."""
    return [re.sub(r"\d+s$", "AGE", line) for line in table.splitlines()]


async def record(node: Node, name: str, **status: object) -> Task:
    """Write a task's status, as the controller would."""
    found = await node.store.get(Kind.TASK, Key(name))
    assert isinstance(found, Task)
    written = await node.store.record(replace(found, status=replace(found.status, **status)))  # type: ignore[arg-type]
    assert isinstance(written, Task)
    return written


async def test_apply_creates_then_leaves_alone_then_changes(node: Node, home: Path) -> None:
    first = await proplet(home, "apply", "-f", "-", stdin=manifest("one", "two"))
    assert first == (0, "task/one created\ntask/two created\n", "")
    again = await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    assert again == (0, "task/one unchanged\n", "")
    changed = await proplet(home, "apply", "-f", "-", stdin=manifest("one").replace(b"32", b"33"))
    assert changed == (0, "task/one configured\n", "")


async def test_apply_takes_a_directory_and_goes_on_after_a_file_that_is_refused(node: Node, home: Path) -> None:
    folder = home / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_bytes(manifest("a"))
    (folder / "b.yaml").write_bytes(manifest("b").replace(b"functionName", b"functionname"))
    (folder / "c.yml").write_bytes(manifest("c"))
    (folder / "notes.txt").write_text("not a manifest")
    code, out, err = await proplet(home, "apply", "-f", folder)
    assert (code, out) == (1, "task/a created\ntask/c created\n")
    assert err.startswith(f"proplet: error: {folder}/b.yaml: ")
    assert "functionname" in err


async def test_apply_puts_what_has_no_namespace_into_the_one_given(node: Node, home: Path) -> None:
    done = await proplet(home, "apply", "-n", "edge", "-o", "yaml", "-f", "-", stdin=manifest("one"))
    assert (done.code, done.err) == (0, "")
    assert yaml.safe_load(done.out)["metadata"]["namespace"] == "edge"
    assert (await proplet(home, "get", "tasks")).err == "no tasks found in namespace default\n"
    everywhere = await proplet(home, "get", "tasks", "-A")
    assert everywhere.out.splitlines()[1].split()[:3] == ["edge", "one", "pending"]


@pytest.mark.parametrize("text", [b"", b"\xff", b"a: [", b"kind: Task", b"{}", b"[1]"])
async def test_apply_of_what_is_no_manifest_fails_in_words(node: Node, home: Path, text: bytes) -> None:
    code, out, err = await proplet(home, "apply", "-f", "-", stdin=text)
    assert (code, out) == (1, "")
    assert err.startswith("proplet: error: standard input: ")
    assert "request:" not in err
    assert "Traceback" not in err


async def test_tables_have_the_references_columns(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("addition-wasm", "other"))
    await record(node, "addition-wasm", phase=Phase.COMPLETED, assigned_proplet="docker-proplet", results="42")
    meta = Meta("docker-proplet")
    await node.store.create(Proplet(meta, status=PropletStatus(PropletPhase.RUNNING)))
    tasks = await proplet(home, "get", "tasks")
    assert aged(tasks.out) == [
        "NAME            PHASE       MODE   PROPLET          START TIME   FINISH TIME   PREFERRED TYPE   AGE",
        "addition-wasm   completed          docker-proplet                              any              AGE",
        "other           pending                                                        any              AGE",
    ]
    proplets = await proplet(home, "get", "proplets")
    assert aged(proplets.out) == [
        "NAME             TYPE       PHASE     READY   TASKS   REPLICAS   LAST SEEN   AGE",
        "docker-proplet   external   Running   True    0                              AGE",
    ]


async def test_every_form_of_output_is_what_it_says(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one", "two"))
    assert (await proplet(home, "get", "tasks", "-o", "name")).out == "task/one\ntask/two\n"
    several = json.loads((await proplet(home, "get", "tasks", "-o", "json")).out)
    assert [item["metadata"]["name"] for item in several["items"]] == ["one", "two"]
    single = yaml.safe_load((await proplet(home, "get", "task/two", "-o", "yaml")).out)
    assert (single["kind"], single["metadata"]["name"]) == ("Task", "two")
    wide = (await proplet(home, "get", "tasks", "-o", "wide", "--no-headers")).out.splitlines()
    assert [line.split()[0] for line in wide] == ["one", "two"]
    assert "<inline>" in wide[0]


async def test_what_was_exported_can_be_applied(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one", "two"))
    exported = await proplet(home, "get", "tasks", "-o", "yaml")
    again = await proplet(home, "apply", "-f", "-", stdin=exported.out.encode())
    assert again == (0, "task/one unchanged\ntask/two unchanged\n", "")


async def test_a_name_that_is_not_there_ends_with_4_and_names_the_nearest(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("addition"))
    message = "proplet: error: there is no task `additon`; did you mean `addition`?\n"
    for command in (["get", "task"], ["describe", "task"], ["delete", "task"], ["start"], ["stop"], ["logs"], ["wait"]):
        done = await proplet(home, *command, "additon")
        assert (done.code, done.err) == (4, message), command
    partly = await proplet(home, "get", "tasks", "addition", "additon", "-o", "name")
    assert partly == (4, "task/addition\n", message)


async def test_describe_tells_all_and_hides_no_line_in_control_characters(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    await record(node, "one", phase=Phase.FAILED, error="trap\x1b[2J", started_at=1.7e9)
    done = await proplet(home, "describe", "task", "one")
    assert (done.code, done.err) == (0, "")
    assert "Function Name:  main" in done.out
    assert "of WebAssembly>" in done.out
    assert "\x1b" not in done.out
    assert "ago)" in done.out


async def test_delete_by_name_by_file_and_all(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("a", "b", "c", "d"))
    assert await proplet(home, "delete", "task", "a") == (0, "task/a deleted\n", "")
    assert await proplet(home, "delete", "-f", "-", stdin=manifest("b")) == (0, "task/b deleted\n", "")
    assert (await proplet(home, "delete", "tasks")).code == 2
    assert await proplet(home, "delete", "tasks", "--all") == (0, "task/c deleted\ntask/d deleted\n", "")
    gone = await proplet(home, "delete", "task/a")
    assert (gone.code, gone.out) == (4, "")
    assert await proplet(home, "delete", "task/a", "--ignore-not-found") == (0, "", "")


async def test_start_stop_and_wait(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    assert (await proplet(home, "stop", "one")).code == 1
    assert await proplet(home, "start", "one") == (0, "task/one started\n", "")
    assert await proplet(home, "wait", "one", "--for=running") == (0, "task/one running\n", "")
    late = await proplet(home, "wait", "one", "--timeout=200ms")
    assert late == (5, "", "proplet: error: task one is running after 200ms; proplet describe task one\n")
    assert await proplet(home, "stop", "one") == (0, "task/one stopped\n", "")
    assert await proplet(home, "wait", "one", "--for=finished") == (0, "task/one interrupted\n", "")
    failed = await proplet(home, "wait", "one")
    assert failed == (1, "", "proplet: error: task one was interrupted\n")


async def test_a_wait_for_what_lasts_says_what_to_wait_for(node: Node, home: Path) -> None:
    for name, field in (("lasts", "daemon"), ("sleeps", "latent")):
        lasting = manifest(name).replace(b"inputs:", f"{field}: true, inputs:".encode())
        await proplet(home, "apply", "-f", "-", stdin=lasting)
        await proplet(home, "start", name)
        await proplet(home, "wait", name, "--for=running")
        code, _, err = await proplet(home, "wait", name, "--timeout=200ms")
        assert code == 5
        assert err.endswith(f"runs until it is stopped: proplet wait --for running {name}\n")


async def test_wait_ends_with_the_change_it_waits_for(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    done = []

    async def waiting() -> None:
        done.append(await proplet(home, "wait", "one", "--timeout", "20s"))

    async with anyio.create_task_group() as group:
        group.start_soon(waiting)
        await record(node, "one", phase=Phase.COMPLETED, results="42")
    assert done == [(0, "task/one completed\n", "")]


async def test_logs_go_where_the_guest_wrote_them(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    task = await record(node, "one", phase=Phase.COMPLETED)
    none = await proplet(home, "logs", "one")
    assert none == (0, "", "no output of task one was sent here; it is completed\n")
    assert await proplet(home, "logs", "one", "-f") == none
    out = LogLines("pi", task.id, 1, "stdout", ("hello", "wor\x1bld"))
    node.control.logs[task.id] = [out, LogLines("pi", task.id, 1, "stderr", ("oops",))]
    assert await proplet(home, "logs", "one", "-f") == (0, "hello\nwor\N{REPLACEMENT CHARACTER}ld\n", "oops\n")


async def test_lines_of_another_attempt_are_set_apart_and_the_last_can_be_chosen(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    task = await record(node, "one", phase=Phase.COMPLETED)
    first = LogLines("pi", task.id, 1, "stdout", ("a", "\x1b[31mb\x1b[0m"), at=1.7e9)
    node.control.logs[task.id] = [first, LogLines("pi-2", task.id, 2, "stdout", ("c", "d"), at=1.8e9)]
    assert await proplet(home, "logs", "one") == (0, "a\nb\nc\nd\n", "--- attempt 2 on pi-2 ---\n")
    assert await proplet(home, "logs", "one", "--tail", "2") == (0, "c\nd\n", "")
    assert (await proplet(home, "logs", "one", "--tail", "3")).out == "b\nc\nd\n"
    dated = await proplet(home, "logs", "one", "--tail", "1", "--timestamps")
    assert dated.out == "2027-01-15T08:00:00.000Z d\n"
    for wrong in (["--tail", "-1"], ["--tail", "x"], ["--since", "x"]):
        assert (await proplet(home, "logs", "one", *wrong)).code == 2


async def test_logs_of_a_task_under_way_say_when_they_come(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    await record(node, "one", phase=Phase.RUNNING)
    code, out, err = await proplet(home, "logs", "one")
    assert (code, out) == (0, "")
    assert err.splitlines()[1] == "to see what it prints from now on: proplet logs -f one"


class Asked(dict[str, Sequence[LogLines]]):
    """No logs; says when it was asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.event = anyio.Event()

    def get(self, key: str, default: Any = None) -> Any:
        self.event.set()
        return super().get(key, default)


async def test_who_follows_logs_waits_for_a_node_that_restarts(home: Path) -> None:
    (home / "run/proplet").mkdir(parents=True)
    settings = ApiSettings(socket=home / "run/proplet/proplet.sock")
    store = MemoryStore()
    async with AsyncExitStack() as stack:
        async with open_node(settings, store) as node:
            await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
            await record(node, "one", phase=Phase.RUNNING)
            node.control.logs = asked = Asked()
            _, output = await stack.enter_async_context(started(home, "logs", "-f", "one"))
            with anyio.fail_after(20):
                await asked.event.wait()
        async with open_node(settings, store) as node:
            task = await record(node, "one", phase=Phase.COMPLETED)
            node.control.logs[task.id] = [LogLines("pi", task.id, 1, "stdout", ("hello",))]
            assert await until(output, "\n") == "hello\n"


@asynccontextmanager
async def started(home: Path, *arguments: str) -> AsyncIterator[tuple[Process, TextReceiveStream]]:
    """Start the command and leave it running until the context ends."""
    async with await anyio.open_process([COMMAND, *arguments], env=environment(home), cwd=home) as process:
        assert process.stdout is not None
        try:
            yield process, TextReceiveStream(process.stdout)
        finally:
            if process.returncode is None:
                process.kill()


async def until(stream: TextReceiveStream, text: str) -> str:
    """Read until `text` was seen."""
    seen = ""
    with anyio.fail_after(20):
        while text not in seen:
            seen += await stream.receive()
    return seen


async def test_watch_prints_changes_as_they_come(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    async with started(home, "get", "tasks", "-w") as (process, output):
        first = await until(output, "pending")
        assert first.splitlines()[0].startswith("NAME   PHASE")
        await record(node, "one", phase=Phase.RUNNING, assigned_proplet="pi")
        assert (await until(output, "running")).split()[:3] == ["one", "running", "pi"]
        await node.store.delete(Kind.TASK, Key("one"))
        assert (await until(output, "deleted")).split()[:2] == ["one", "deleted"]
        process.send_signal(2)
        with anyio.fail_after(10):
            assert await process.wait() == 130


async def test_a_watch_of_proplets_shows_how_many_tasks_they_have(node: Node, home: Path) -> None:
    await node.store.create(Proplet(Meta("pi"), status=PropletStatus(PropletPhase.RUNNING)))
    await proplet(home, "apply", "-f", "-", stdin=manifest("one"))
    async with started(home, "get", "proplets", "-w") as (process, output):
        lines = (await until(output, "Running")).splitlines()
        assert lines[0].split()[:5] == ["NAME", "TYPE", "PHASE", "READY", "TASKS"]
        assert lines[1].split()[:5] == ["pi", "external", "Running", "True", "0"]
        await record(node, "one", phase=Phase.RUNNING, assigned_proplet="pi")
        assert (await until(output, "\n")).split()[4] == "1"
        await record(node, "one", phase=Phase.COMPLETED, assigned_proplet="pi")
        assert (await until(output, "\n")).split()[4] == "0"
        await node.store.delete(Kind.PROPLET, Key("pi"))
        assert (await until(output, "\n")).split()[:3] == ["pi", "external", "deleted"]
        process.send_signal(2)
        with anyio.fail_after(10):
            assert await process.wait() == 130


async def test_a_watch_whose_history_is_gone_lists_again(home: Path) -> None:
    (home / "run/proplet").mkdir(parents=True)
    settings = ApiSettings(socket=home / "run/proplet/proplet.sock")
    store = MemoryStore(history=2)
    async with AsyncExitStack() as stack:
        async with open_node(settings, store) as node:
            await proplet(home, "apply", "-f", "-", stdin=manifest("kept", "one", "two"))
            _, output = await stack.enter_async_context(started(home, "get", "tasks", "-w"))
            await until(output, "two")
        # While the node is away, more happens than it remembers.
        for phase in (Phase.SCHEDULED, Phase.RUNNING, Phase.COMPLETED):
            await record(node, "one", phase=phase, assigned_proplet="pi")
        await store.delete(Kind.TASK, Key("two"))
        async with open_node(settings, store):
            seen = await until(output, "deleted")
            assert [line.split()[:2] for line in seen.splitlines()] == [["one", "completed"], ["two", "deleted"]]


async def test_a_watch_of_json_prints_a_document_per_change(node: Node, home: Path) -> None:
    await proplet(home, "apply", "-f", "-", stdin=manifest("one", "two"))
    async with started(home, "get", "tasks", "two", "-w", "-o", "name") as (_, output):
        assert await until(output, "\n") == "task/two\n"
        await record(node, "one", phase=Phase.RUNNING)
        await record(node, "two", phase=Phase.RUNNING)
        assert await until(output, "\n") == "task/two\n"


async def test_a_missing_token_is_asked_for_in_the_words_of_the_command(home: Path) -> None:
    settings = ApiSettings(socket=None, host="127.0.0.1", port=0, token=TOKEN)
    async with open_node(settings) as node:
        url = f"http://127.0.0.1:{node.port}"
        for environ in ({}, {"PROPLET_TOKEN": "another"}):
            code, out, err = await proplet(home, "get", "tasks", "-s", url, environ=environ)
            assert (code, out) == (1, "")
            assert "the node wants its token" in err
            assert "--token-file FILE" in err
        (home / "token").write_text(f"{TOKEN}\n")
        assert (await proplet(home, "get", "tasks", "-s", url, "--token-file", home / "token")).code == 0


async def test_the_node_can_be_named_by_its_socket(node: Node, home: Path) -> None:
    code, out, err = await proplet(home, "version", "-s", f"unix:{node.socket}")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == "node 1.2.3 (agent, broker, manager)"
    assert (await proplet(home, "version", "-s", f"unix:{home}/none")).code == 3


# --- jobs and learning ------------------------------------------------------------------------------------------------

JOB = b"""\
apiVersion: propeller.propeller.abstractmachines.fr/v1
kind: PropellerJob
metadata: {name: nightly}
spec:
  name: nightly
  executionMode: sequential
  tasks: [{name: a, imageUrl: "localhost:5000/add:1"}, {name: b, imageUrl: "localhost:5000/add:1"}]
"""
LEARNING = b"""\
apiVersion: propeller.propeller.abstractmachines.fr/v1alpha1
kind: FederatedJob
metadata: {name: plane}
spec: {experimentId: e, modelRef: "oci://m:0", taskWasmImage: "localhost:5000/t:1", participants: [{propletId: p}],
  kOfN: 1, timeoutSeconds: 60, rounds: {total: 2}, aggregator: {algorithm: fedavg}}
"""


async def test_jobs_and_learning_have_the_references_columns(node: Node, home: Path) -> None:
    async with open_works(node.store, collect_garbage=True):
        applied = await proplet(home, "apply", "-f", "-", stdin=JOB + b"---\n" + LEARNING)
        assert applied.out == "propellerjob/nightly created\nfederatedjob/plane created\n"
        assert (await proplet(home, "wait", "federatedjob/plane", "--for", "running")).code == 0
        assert (await proplet(home, "wait", "traininground/round-1-plane", "--for", "running")).code == 0
        assert (await proplet(home, "wait", "job/nightly", "--for", "running")).out == "propellerjob/nightly running\n"
        jobs = await proplet(home, "get", "pjob")
        learning = await proplet(home, "get", "federatedjobs")
        rounds = await proplet(home, "get", "trainingrounds")
    assert aged(jobs.out) == [
        "NAME      PHASE     MODE         TASKS   COMPLETED   FAILED   AGE",
        "nightly   Running   sequential   2       0           0        AGE",
    ]
    assert aged(learning.out) == [
        "NAME    PHASE     CURRENT ROUND   COMPLETED ROUNDS   AGE",
        "plane   Running   1               0                  AGE",
    ]
    assert aged(rounds.out) == [
        "NAME            PHASE     JOB     UPDATES   REQUIRED   AGE",
        "round-1-plane   Running   plane   0         1          AGE",
    ]


async def test_waiting_for_a_job_ends_with_it_and_says_why_it_failed(node: Node, home: Path) -> None:
    async with open_works(node.store, collect_garbage=True):
        await proplet(home, "apply", "-f", "-", stdin=JOB)
        late = await proplet(home, "wait", "job/nightly", "--timeout", "10ms")
        assert (late.code, late.err.split(";")[0]) == (5, "proplet: error: job nightly is running after 10ms")
        await record(node, "nightly-a", phase=Phase.FAILED)
        failed = await proplet(home, "wait", "--for", "completed", "job/nightly")
        ended = await proplet(home, "wait", "--for", "finished", "job/nightly")
        described = (await proplet(home, "describe", "job", "nightly")).out
    assert (failed.code, failed.out) == (1, "")
    assert failed.err == "proplet: error: job nightly failed: Tasks did not complete: nightly-a (failed)\n"
    assert (ended.code, ended.out) == (0, "propellerjob/nightly failed\n")
    assert "Skipped Count:" in described


async def test_a_job_is_started_stopped_and_deleted_by_name(node: Node, home: Path) -> None:
    async with open_works(node.store, collect_garbage=True):
        held = JOB.replace(b"{name: nightly}", f'{{name: nightly, annotations: {{"{HELD}": "true"}}}}'.encode())
        await proplet(home, "apply", "-f", "-", stdin=held)
        assert (await proplet(home, "start", "job/nightly")).out == "propellerjob/nightly started\n"
        assert (await proplet(home, "wait", "job/nightly", "--for", "running")).code == 0
        assert (await proplet(home, "stop", "job/nightly")).out == "propellerjob/nightly stopped\n"
        assert (await proplet(home, "wait", "job/nightly", "--for", "finished")).code == 0
        again = await proplet(home, "stop", "job/nightly")
        assert (again.code, again.err.split("(")[0]) == (1, "proplet: error: job nightly has ended ")
        assert (await proplet(home, "delete", "-f", "-", stdin=held)).out == "propellerjob/nightly deleted\n"
        missing = await proplet(home, "wait", "job/nightli")
        assert missing.code == 4


async def test_what_cannot_be_started_or_has_no_logs_is_wrong_usage(node: Node, home: Path) -> None:
    for arguments in (("start", "federatedjob/x"), ("logs", "job/x"), ("wait", "proplet/x"), ("stop", "pods/x")):
        assert (await proplet(home, *arguments)).code == 2


async def test_get_all_shows_every_kind_with_its_name(node: Node, home: Path) -> None:
    nothing = await proplet(home, "get", "all")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "nothing found in namespace default\n")
    await proplet(home, "apply", "-f", "-", stdin=manifest("one") + b"---\n" + JOB)
    shown = (await proplet(home, "get", "all")).out.split("\n\n")
    assert [table.splitlines()[1].split()[0] for table in shown] == ["task/one", "propellerjob/nightly"]
    names = await proplet(home, "get", "all", "-o", "name")
    assert names.out == "task/one\npropellerjob/nightly\n"
    everything = json.loads((await proplet(home, "get", "all", "-o", "json")).out)
    assert [item["kind"] for item in everything["items"]] == ["Task", "PropellerJob"]
    assert (await proplet(home, "get", "all", "one")).code == 2


async def test_watching_jobs_prints_how_far_they_are(node: Node, home: Path) -> None:
    async with open_works(node.store, collect_garbage=True):
        await proplet(home, "apply", "-f", "-", stdin=JOB)
        async with started(home, "get", "jobs", "-w") as (process, output):
            await until(output, "Running")
            await record(node, "nightly-a", phase=Phase.FAILED)
            assert (await until(output, "Failed")).split()[:6] == ["nightly", "Failed", "sequential", "2", "0", "1"]
            process.send_signal(2)
            with anyio.fail_after(10):
                assert await process.wait() == 130
