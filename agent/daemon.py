"""A node, or the manager of a cluster, as a daemon: signals, readiness, the watchdog, exit codes.

What it is to be is imported when it is known: a manager alone takes none of the agent's memory.
"""

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from proplet.agent.config_schema import NodeSettings
from proplet.agent.failures import NodeError, as_node_errors, leaves
from proplet.agent.link_parts import link_settings
from proplet.agent.ports import StorageError
from proplet.agent.systemd import Notifier, watchdog_interval_s

if TYPE_CHECKING:
    from proplet.agent.app import Node

log = logging.getLogger(__name__)

#: sysexits.h: what is needed is not available; internal software error; try again later.
EXIT_UNAVAILABLE, EXIT_SOFTWARE, EXIT_TEMPFAIL = 69, 70, 75


def run(settings: NodeSettings) -> int:
    """Run the node until a signal ends it; return the exit code. Errors go to the log, one line each."""
    return _ended(lambda: _serve(partial(_be_the_node, settings)))


def run_manager(settings: NodeSettings) -> int:
    """Run only the manager of a cluster, until a signal ends it; return the exit code."""
    return _ended(lambda: _serve(partial(_be_the_manager, settings)))


def remove_finalizers(settings: NodeSettings) -> int:
    """Take the finalizers off a cluster's resources; return the exit code."""

    async def remove() -> None:
        from proplet.agent.app_cluster import ERRORS, free_resources

        with as_node_errors(*ERRORS):
            log.info("%d resources were freed of their finalizers", await free_resources(settings))

    return _ended(remove)


def _ended(work: Callable[[], Awaitable[None]]) -> int:
    """Do the work of a process; return its exit code."""
    try:
        anyio.run(work)
    except (NodeError, StorageError) as error:
        return _explain([error])
    except BaseExceptionGroup as group:
        return _explain(list(leaves(group)))
    return 0


def _explain(errors: Sequence[BaseException]) -> int:
    """Log what ended the node and return its exit code. A defect of ours is shown with its traceback."""
    defects = [error for error in errors if not isinstance(error, (NodeError, StorageError))]
    for defect in defects:
        log.error("a part of the node has failed", exc_info=defect)
    if defects:
        return EXIT_SOFTWARE
    for error in errors:
        log.error("%s", error)
    return EXIT_TEMPFAIL if any(isinstance(error, StorageError) for error in errors) else EXIT_UNAVAILABLE


async def _serve(be: Callable[[Notifier, anyio.Event], Awaitable[None]]) -> None:
    """Be something until the first signal. It is then left in order, not cancelled: a goodbye needs the broker."""
    notifier = Notifier.from_environment()
    ending = anyio.Event()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for number in signals:
                    if ending.is_set():
                        os._exit(128 + number)  # asked twice: now
                    log.info("%s: the end", signal.Signals(number).name)
                    notifier.stopping("ending")
                    ending.set()

            tasks.start_soon(listen, name="signals")
            await be(notifier, ending)
            tasks.cancel_scope.cancel()


async def _be_the_node(settings: NodeSettings, notifier: Notifier, ending: anyio.Event) -> None:
    from proplet.agent.app import open_node

    async with open_node(settings) as node:
        what = ", ".join(_roles(node))
        log.info("ready: %s; proplet %s, broker %s", what, settings.node.id, node.broker_address)
        notifier.ready(f"{what}; proplet {settings.node.id}")
        await _until(ending, notifier, node.alive)


async def _until(ending: anyio.Event, notifier: Notifier, alive: Callable[[], Awaitable[None]]) -> None:
    """Wait for the end, and tell the watchdog meanwhile, once `alive` has returned."""
    interval_s = watchdog_interval_s()
    while not ending.is_set():
        with anyio.move_on_after(interval_s or float("inf")):
            await ending.wait()
        if interval_s and not ending.is_set():
            await alive()
            notifier.watchdog()


async def _be_the_manager(settings: NodeSettings, notifier: Notifier, ending: anyio.Event) -> None:
    from proplet.agent.app_cluster import ERRORS, open_lone_cluster

    address, key = settings.mqtt.address, settings.mqtt.client_key
    own = settings.mqtt.client_id or settings.node.id
    assert address is not None
    with as_node_errors(*ERRORS):
        mqtt = link_settings(settings, address, own, own, key.reveal() if key else "")
        async with open_lone_cluster(settings, mqtt):
            log.info("starting manager: %s, broker %s", own, address)
            notifier.ready(f"manager {own}")
            await _until(ending, notifier, anyio.lowlevel.checkpoint)  # the loop turns: that is all there is to prove


def _roles(node: "Node") -> Iterator[str]:
    yield "agent"
    if node.broker_engine:
        yield f"broker ({node.broker_engine})"
    if node.settings.manager:
        yield "manager"
