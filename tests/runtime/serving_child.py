"""An agent's runtime with one service, as a process to be killed: prints the port and the program's process id."""

import sys
from pathlib import Path

import anyio

from proplet.agent.ports import Notice, Serving
from proplet.agent.program_ports import Allowed
from proplet.agent.program_runtime import ProgramSettings, open_programs
from tests.runtime.conftest import open_node


async def main(directory: Path, first_port: int) -> None:
    settings = ProgramSettings(cache_dir=directory / "program", allowed=Allowed(first=first_port, last=first_port + 3))
    async with open_node(directory) as node, open_programs(settings, node.runtime, 4) as runtime:

        def hear(notice: Notice) -> None:
            if isinstance(notice, Serving):
                print(notice.port, *runtime.programs.pids, flush=True)

        await runtime.run(await node.job("component_http", "_start", wall_s=None, cpu_s=None), hear)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
