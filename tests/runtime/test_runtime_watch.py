"""What is seen of a worker from outside: CPU time, memory now and at its peak, and when that is too much."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from proplet.agent.ports import GuestLimits
from proplet.agent.runtime_gauge import Gauge
from proplet.agent.runtime_watch import Watch

MIB = 1024 * 1024
_CHILD = """
import sys
held = None
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "hold":
        held = b"x" * int(number)
    elif word == "drop":
        held = None
    else:
        while True: pass
    print("done", flush=True)
"""


class Worker:
    """A process that does as it is told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def do(self, order: str) -> None:
        """Tell it, and wait until it is done."""
        self.tell(order)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def worker() -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            found = Worker(process)
            found.do("drop")
            yield found
        finally:
            process.kill()


def test_cpu_time_counts_from_the_jobs_begin_and_ends_it_some_way_beyond_its_limit() -> None:
    with worker() as busy:
        watch = Watch(busy.pid, 0)
        watch.begin()
        limits = GuestLimits(memory_bytes=1024 * MIB, cpu_s=0.1)
        assert watch.excess(limits) is None
        busy.tell("spin")
        until = time.monotonic() + 60
        while (why := watch.excess(limits)) is None and time.monotonic() < until:
            with suppress(subprocess.TimeoutExpired):
                busy.process.wait(0.01)
        assert why == "cpu_limit"
        assert 1.1 <= (watch.measured().cpu_s or 0) < 10
        watch.begin()
        assert (watch.measured().cpu_s or 0) < 1


def test_memory_beyond_the_limit_and_the_allowance_ends_it() -> None:
    with worker() as large:
        watch = Watch(large.pid, 32 * MIB)
        watch.begin()
        limits = GuestLimits(memory_bytes=32 * MIB)
        large.do(f"hold {40 * MIB}")
        assert watch.excess(limits) is None
        large.do(f"hold {100 * MIB}")
        assert watch.excess(limits) == "memory_limit"
        assert (watch.measured().private_bytes or 0) > 100 * MIB


def test_the_peak_of_a_job_is_not_that_of_the_one_before() -> None:
    with worker() as used:
        watch = Watch(used.pid, 0)
        watch.begin()
        used.do(f"hold {100 * MIB}")
        used.do("drop")
        first = watch.peak_bytes or 0
        watch.begin()
        used.do(f"hold {10 * MIB}")
        second = watch.peak_bytes or 0
        assert first - second > 80 * MIB


def test_who_does_nothing_is_looked_at_less_often_and_who_computes_again_soon() -> None:
    with worker() as idle:
        watch = Watch(idle.pid, 0)
        watch.begin()
        limits = GuestLimits(memory_bytes=1024 * MIB, cpu_s=None)
        pauses = []
        for _ in range(6):
            watch.excess(limits)
            pauses.append(watch.pause_s)
        assert pauses[-1] == 1.0
        idle.do(f"hold {300 * MIB}")
        watch.excess(limits)
        assert watch.pause_s < 0.2


def test_nothing_is_said_of_a_process_that_is_gone() -> None:
    with worker() as gone:
        pid = gone.pid
        gone.process.kill()
        gone.process.wait()
    gauge = Gauge(pid)
    assert (gauge.cpu_s(), gauge.private_bytes(), gauge.peak_bytes(), gauge.forget_peak()) == (None, None, None, False)
    watch = Watch(pid, 0)
    watch.begin()
    assert watch.excess(GuestLimits(cpu_s=0.0)) is None
