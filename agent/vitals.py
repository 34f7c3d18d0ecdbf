"""The device's own measures, by psutil: who it is, and what this node's processes use, children included."""

import importlib.metadata
import platform
import socket
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from proplet.agent.engines import CRANELIFT
from proplet.agent.wire import CpuMetrics, MemoryMetrics, Metadata, TaskSample


class Vitals:
    """Measures the node: its own process and its children (worker, builder, broker)."""

    def __init__(self, engine: str = CRANELIFT, external: str | None = None) -> None:
        """Measure for a node whose guests run on `engine`, one of `engines`, or in the program `external`."""
        self._runtime = external or f"wasmtime-py {_version('wasmtime')} ({engine})"
        self._process = psutil.Process()
        self._total_memory = psutil.virtual_memory().total
        self._ended_cpu = (0.0, 0.0)  # user and system seconds of children that are no more
        self._children: dict[int, tuple[float, float]] = {}
        psutil.cpu_percent(interval=None)

    def metadata(self, *, collect_system_info: bool = True) -> Metadata:
        """Return the device as it describes itself at discovery; without system information, only its software."""
        software = Metadata(
            proplet_version=importlib.metadata.version("proplet"),
            wasm_runtime=self._runtime,
        )
        if not collect_system_info:
            return software
        return replace(
            software,
            ip=_address(),
            environment="docker" if Path("/.dockerenv").exists() else "binary",
            os=platform.system().lower(),
            hostname=socket.gethostname(),
            cpu_arch=platform.machine(),
            total_memory_bytes=self._total_memory,
        )

    def measure(self) -> tuple[CpuMetrics, MemoryMetrics]:
        """Return the CPU and memory of the node's processes now; the percentage is of the whole machine since last."""
        rss = 0
        user, system = self._ended_cpu
        children: dict[int, tuple[float, float]] = {}
        with self._process.oneshot():
            rss += self._process.memory_info().rss
            own = self._process.cpu_times()
        for child in self._process.children(recursive=True):
            try:
                with child.oneshot():
                    rss += child.memory_info().rss
                    times = child.cpu_times()
                    children[child.pid] = (times.user, times.system)
            except psutil.Error:
                continue  # it has just ended
        for pid, used in self._children.items():
            if pid not in children:
                user, system = user + used[0], system + used[1]
        self._ended_cpu, self._children = (user, system), children
        user += own.user + sum(u for u, _ in children.values())
        system += own.system + sum(s for _, s in children.values())
        usage, limit = _cgroup_memory()
        cpu = CpuMetrics(round(user, 3), round(system, 3), psutil.cpu_percent(interval=None))
        return cpu, MemoryMetrics(rss_bytes=rss, container_usage_bytes=usage, container_limit_bytes=limit)

    @staticmethod
    def process(pid: int) -> TaskSample:
        """Return the threads, open files and disk traffic of one process; all 0 when it is no more."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                # psutil has no such method where the kernel does not count.
                traffic = process.io_counters() if hasattr(process, "io_counters") else None
                return TaskSample(
                    disk_read_bytes=traffic.read_bytes if traffic else 0,
                    disk_write_bytes=traffic.write_bytes if traffic else 0,
                    thread_count=process.num_threads(),
                    file_descriptor_count=process.num_fds(),
                )
        except (psutil.Error, OSError, RuntimeError, ValueError):  # of a process that is just ending, /proc is empty
            return TaskSample()

    @property
    def total_memory_bytes(self) -> int:
        """The machine's memory."""
        return self._total_memory


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _address() -> str | None:
    """The local address of the default route. Nothing is sent: a datagram socket is only told its peer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _cgroup_memory() -> tuple[int | None, int | None]:
    """This process's cgroup's use and limit, version 2; None where there is none."""
    try:
        line = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("0::")[2]
        group = Path("/sys/fs/cgroup") / line.lstrip("/")
        usage = int((group / "memory.current").read_text(encoding="ascii"))
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None, None
    return usage, None if limit == "max" else int(limit)


def machine_is_supported() -> bool:
    """Whether wasmtime has a build for this interpreter: 64-bit x86 or ARM, and the interpreter itself 64-bit."""
    return platform.machine() in {"x86_64", "aarch64", "arm64"} and sys.maxsize > 2**32
