"""``proplet manager`` that is killed at a step of a Task: ``python -m tests.kubernetes.dying_manager STEP ARGS...``.

Steps are the moments before and after each write of a Task and each publishing of a start, counted from 1.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from proplet.agent.cli import main
from proplet.manager.bus import MqttBus
from proplet.manager.kubernetes_api import KubernetesApi


def arm(fatal: int) -> None:
    steps = count(1)

    def step() -> None:
        if next(steps) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    patch, start = KubernetesApi.patch, MqttBus.start

    @functools.wraps(patch)
    def stepping_patch(self: KubernetesApi, collection: Any, *args: Any, **more: Any) -> Any:
        if collection.kind != "Task":
            return patch(self, collection, *args, **more)
        return between(lambda: patch(self, collection, *args, **more))

    def between(write: Callable[[], Any]) -> Any:
        step()
        done = write()
        step()
        return done

    @functools.wraps(start)
    async def stepping_start(self: MqttBus, *args: Any) -> None:
        step()
        await start(self, *args)
        step()

    KubernetesApi.patch = stepping_patch  # type: ignore[method-assign]
    MqttBus.start = stepping_start  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(int(sys.argv[1]))
    sys.exit(main(["manager", *sys.argv[2:]]))
