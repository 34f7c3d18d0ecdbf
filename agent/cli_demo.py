"""``proplet demo``: a whole node on loopback for one task, shown as it happens; afterwards nothing of it is left.

The module is an image in the node's store; the task names it at the node's own mirror, so that the agent pulls it over
HTTP as from any registry: resolved, verified, recorded by its digest.
"""

import argparse
import base64
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from proplet.agent import render
from proplet.agent.cli import FAILED, OK, CliError
from proplet.agent.cli_session import answered
from proplet.agent.cli_tasks import TERMINAL
from proplet.agent.client import Client, Target
from proplet.agent.config import read
from proplet.agent.config_schema import NodeSettings
from proplet.agent.parts import modules_settings
from proplet.agent.render import Manifest, at
from proplet.agent.systemd import configure_logging

_EXPECTED: Final = "42"
_PATIENCE_S: Final = 120.0
_MODULE: Final = base64.b64decode("AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL")
_IMAGE: Final = "demo/addition:1"
_INPUTS: Final = (10, 32)
# Nobody has signed the module that this program brings along, and nobody needs to.
_POLICY: Final = '[repositories."127.0.0.1:*/demo/*"]\nrule = "allow"\n'

Say = Callable[[str], None]


def task_of(image: str) -> Mapping[str, Any]:
    """Return the task: the addition, by a reference to its image."""
    return {
        "apiVersion": "propeller.propeller.abstractmachines.fr/v1",
        "kind": "Task",
        "metadata": {"name": "addition"},
        "spec": {"name": "addition", "functionName": "main", "imageUrl": image, "inputs": list(_INPUTS)},
    }


def demo(options: argparse.Namespace) -> int:
    """Run the main job once; 0 if its result is 42."""
    configure_logging(logging.WARNING)
    say = _clock()
    with tempfile.TemporaryDirectory(prefix="proplet-demo-") as directory:
        settings = settings_in(Path(directory), options.broker)
        say(f"starting agent, broker and manager on loopback, in {directory}")
        task = anyio.run(_node_with_task, settings, say)
    say("stopped; nothing of it is left")
    result = at(task, "status.results")
    sys.stdout.write(f"\nresult  {render.one_line(result)}\ncost    {cost(at(task, 'status.usage'))}\n")
    if result == _EXPECTED:
        return OK
    error = render.one_line(at(task, "status.error")) or "no error was given"
    raise CliError(f"the result should be {_EXPECTED}; the task is {at(task, 'status.phase')}: {error}", FAILED)


def settings_in(directory: Path, engine: str) -> NodeSettings:
    """Return the settings of a node that keeps all it has in `directory` and takes free ports; defaults otherwise.

    It has a mirror of its store, and a policy that lets the module from there run.
    """
    places = {name: str(directory / name.lower()) for name in ("STATE", "CACHE", "RUNTIME", "CONFIGURATION")}
    environ = {f"{name}_DIRECTORY": place for name, place in places.items()}
    policy = directory / "policy.toml"
    policy.write_text(_POLICY)
    given = {"broker.port": "0", "broker.engine": engine, "manager.mirror.port": "0"}
    return read(None, environ, {**given, "modules.signature_policy": str(policy)}).settings


async def _node_with_task(settings: NodeSettings, say: Say) -> Manifest:
    from proplet.agent.app import open_node

    async with open_node(settings) as node:
        say(f"ready: broker {node.broker_engine} at {node.broker_address}")
        assert node.socket_path is not None
        target, image = Target(socket=node.socket_path), f"{node.mirror_address}/{_IMAGE}"
        await anyio.to_thread.run_sync(publish, settings)
        say(f"ready: image {image}")
        try:
            with anyio.fail_after(_PATIENCE_S):
                # Cancelled, the thread is left alone: it ends with the node, when its connection does.
                return await anyio.to_thread.run_sync(_follow, target, image, say, abandon_on_cancel=True)
        except TimeoutError:
            raise CliError(f"the task did not finish within {_PATIENCE_S:.0f} s") from None
    raise AssertionError("unreachable")


def publish(settings: NodeSettings) -> None:
    """Put the module into the node's store as an image that is the mirror's own, where everybody may pull it."""
    from proplet.oci.artifact import make_artifact
    from proplet.oci.layout import OciLayout
    from proplet.oci.manifest import OCI_MANIFEST, Descriptor

    artifact = make_artifact(io.BytesIO(_MODULE), "addition.wasm", time.time(), tag=_IMAGE.partition(":")[2])
    layout = OciLayout(modules_settings(settings).store_dir)
    for data in (_MODULE, artifact.config, artifact.manifest):
        layout.add_blob(data)
    layout.set_reference(f"localhost/{_IMAGE}", Descriptor(OCI_MANIFEST, artifact.digest, len(artifact.manifest)))


def _follow(target: Target, image: str, say: Say) -> Manifest:
    """Apply the task and tell its phases, from the node's own account of its changes."""
    client = Client(target)
    with answered():
        before = client.list("tasks")["version"]
        client.apply(json.dumps(task_of(image)))
        say(f"applied task addition: main({', '.join(map(str, _INPUTS))})")
        phase = ""
        for event in client.watch("tasks", since=before):
            task = event.object or {}
            now = str(at(task, "status.phase"))
            if now != phase:
                phase = now
                where = at(task, "status.assignedProplet")
                say(f"{phase}{f' on {where}' if where and phase == 'scheduled' else ''}")
            if phase in TERMINAL:
                return task
    raise CliError("the node ended the watch before the task")


def cost(usage: Any) -> str:
    """Return a task's usage in one line."""
    stages = at(usage, "wallSeconds") or {}
    walls = ", ".join(f"{name} {render.duration(seconds)}" for name, seconds in stages.items() if seconds)
    kind = at(usage, "startKind")
    return (
        f"{walls or 'no times'}{f' ({kind} start)' if kind else ''}; CPU {render.duration(at(usage, 'cpuSeconds'))}; "
        f"peak memory {render.size(at(usage, 'peakMemoryBytes'))}"
    )


def _clock() -> Say:
    began = time.monotonic()

    def say(message: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.3f} s  {message}\n")
        sys.stdout.flush()

    return say
