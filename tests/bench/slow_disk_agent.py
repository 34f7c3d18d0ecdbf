"""An agent whose journal takes longer to commit, as on an SD card; a process of its own.

``python -m tests.bench.slow_disk_agent CONFIG FSYNC_MS``. The product's own parts put together as `proplet.agent.app`
does it, but for the journal: the real one, on the real disk, whose thread then waits. It ends with its standard input.
"""

import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from proplet.agent import link_parts, parts
from proplet.agent.config import load
from proplet.agent.config_schema import NodeSettings
from proplet.agent.core import Core
from proplet.agent.events import Save
from proplet.agent.fetch import open_modules
from proplet.agent.journal import SqliteJournal
from proplet.agent.journal_sweep import OutboxBounds
from proplet.agent.mqtt import open_link
from proplet.agent.presence import Presence
from proplet.agent.runtime import open_runtime
from proplet.agent.shell import Shell
from proplet.agent.vitals import Vitals


class SlowJournal(SqliteJournal):
    """The journal, where every commit ends with a wait in the journal's thread: what an fsync costs there."""

    fsync_s = 0.0

    def _commit(self, saves: Sequence[Save]) -> None:
        super()._commit(saves)
        threading.Event().wait(self.fsync_s)


@asynccontextmanager
async def open_slow_journal(path: Path, fsync_s: float) -> AsyncIterator[SlowJournal]:
    journal = SlowJournal(path, OutboxBounds())
    journal.fsync_s = fsync_s
    try:
        await journal._call(journal._open)
        yield journal
    finally:
        await journal._call(journal._close)
        journal._thread.shutdown()


async def main(settings: NodeSettings, fsync_s: float) -> None:
    mqtt, topics, about = settings.mqtt, link_parts.topics_of(settings), parts.presence_settings(settings)
    assert mqtt.address is not None
    assert mqtt.client_key is not None
    link_settings = link_parts.link_settings(
        settings, mqtt.address, settings.node.id, settings.node.id, mqtt.client_key.reveal()
    )
    async with (
        open_slow_journal(settings.node.state_dir / "journal.db", fsync_s) as journal,
        open_modules(parts.modules_settings(settings)) as modules,
        open_runtime(parts.runtime_settings(settings), modules) as runtime,
    ):
        shell = Shell(
            parts.shell_settings(settings),
            Core(parts.core_settings(settings)),
            journal=journal,
            modules=modules,
            runtime=runtime,
            topics=topics,
            presence=Presence(about, topics, runtime, Vitals()),
        )
        wanted = parts.subscriptions(topics, about.proplet_id)
        async with (
            open_link(link_settings, wanted, parts.will_of(topics, about), shell.put) as link,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(shell.serve, link)
            await anyio.to_thread.run_sync(sys.stdin.read)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, load(Path(sys.argv[1])), float(sys.argv[2]) / 1000)
