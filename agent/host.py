"""One guest, run to its end on the calling thread: fresh store, limits, entry point, arguments, outcome.

Place in the flow: `worker` calls `Host.run` on its threads, one guest per thread. Whatever a guest does comes back as
a `Report`. Rules learnt by measurement: a store is closed always, and only after the guest returned; WASI is configured
in every store whose module can reach it (the process aborts otherwise); no callback raises.

Entry points, by the reference's rule: ``_initialize`` first if it is exported; then the export asked for, else
``main``, ``run``, ``_start``. A module that imports WASI and is entered at ``_start`` is a command: its inputs are
arguments, and what it prints is its result. Everything else is a function: inputs are its typed parameters.
"""

import threading
import time
from typing import Final

from wasmtime import Store, Trap, WasmtimeError

from proplet.agent import host_component, host_ffi, wasi
from proplet.agent.cache import RottenError
from proplet.agent.host_call import Guest, GuestError, enter, explain
from proplet.agent.host_engine import Library, Loaded, LoadError
from proplet.agent.host_interfaces import LoadedComponent
from proplet.agent.host_output import Capture, Talk, Teller
from proplet.agent.host_watch import STOPPED, Run, Watch, note_memory
from proplet.agent.task_logs import plain
from proplet.agent.worker_orders import STALE, Order, Report

_ERROR_MOST: Final = 4096  # characters


class Host:
    """Runs guests with modules from `library`; safe to use from many threads."""

    def __init__(self, library: Library, teller: Teller) -> None:
        self._library = library
        self._teller = teller
        self._watch = Watch(library.tick)
        self._runs: dict[int, Run | None] = {}
        self._stopped: set[int] = set()
        self._lock = threading.Lock()

    def expect(self, number: int) -> None:
        """A run with this number will come: it can be stopped from now on."""
        self._runs[number] = None

    def stop(self, number: int) -> None:
        """End a run soon, or before it begins. Unknown numbers are ignored: it has just ended."""
        with self._lock:
            if number not in self._runs:
                return
            run = self._runs[number]
            if run is None:
                self._stopped.add(number)
        if run is not None:
            self._watch.cancel(run, STOPPED)

    def sample(self) -> dict[int, tuple[float, int | None, float]]:
        """Return CPU seconds, bytes of memory and wall seconds of every live run."""
        self._watch.refresh()
        threading.Event().wait(0.005)  # for the computing guests to note their memory
        now = time.monotonic()
        live = [(number, run) for number, run in list(self._runs.items()) if run is not None]
        return {number: (run.cpu_s(), run.memory_bytes, now - run.started) for number, run in live}

    def load(self, path: str, *, metered: bool, stack_bytes: int) -> tuple[str, str] | None:
        """Load a module that may be run soon; return the reason and the text if all its runs would be refused."""
        try:
            self._library.get(path, metered=metered, stack_bytes=stack_bytes)
        except LoadError as error:
            return error.reason, str(error)
        except RottenError:
            return None  # its run says so, and it is made again
        return None

    def run(self, order: Order) -> Report:
        """Run the guest of `order`; `expect` was called before."""
        hot, began = False, time.monotonic()
        try:
            loaded, hot = self._library.get(order.path, metered=order.metered, stack_bytes=order.stack_bytes)
            began = time.monotonic()
            report = self._run_loaded(order, loaded)
        except RottenError as error:
            report = Report(order.number, STALE, error=str(error))
        except LoadError as error:
            report = Report(order.number, error.reason, error=str(error))
        finally:
            with self._lock:
                self._runs.pop(order.number, None)
                self._stopped.discard(order.number)
        return report._replace(error=_sayable(report.error), run_s=time.monotonic() - began, hot=hot)

    def _run_loaded(self, order: Order, loaded: Loaded | LoadedComponent) -> Report:
        run = Run(order.wall_s, order.cpu_s)
        with self._lock:
            if order.number in self._stopped:
                run.cancel(STOPPED)
            self._runs[order.number] = run
        talk = self._teller.listen(order.number, order.output_bytes, daemon=order.wall_s is None)
        self._watch.add(run)
        wasi.enter(run)
        try:
            return _run(order, loaded, run, talk)
        finally:
            wasi.enter(None)
            self._watch.remove(run)
            talk.end()


def _run(order: Order, loaded: Loaded | LoadedComponent, run: Run, talk: Talk) -> Report:
    stdout, stderr = talk.stdout, talk.stderr
    guest = Guest(order, run, Store(loaded.engine), stdout, stderr)
    failure: GuestError | None = None
    results: str | None = ""
    fuel_used: int | None = None
    try:
        if isinstance(loaded, LoadedComponent):
            results = host_component.enter(guest, loaded)
        else:
            results = enter(guest, loaded)
    except GuestError as error:
        failure = error
    except (Trap, WasmtimeError) as fault:
        failure = (host_component.explain if isinstance(loaded, LoadedComponent) else explain)(guest, fault)
        results = None if guest.command else ""
    finally:
        note_memory(run, host_ffi.context(guest.store))
        fuel_used = guest.fuel_used()
        guest.store.close()
    return Report(
        number=order.number,
        reason=failure.reason if failure else "ok",
        results=results,
        error=str(failure) if failure else None,
        exit_code=failure.exit_code if failure else (0 if guest.command else None),
        stdout=stdout.value(),
        stderr=_with_dropped(stdout, stderr),
        cpu_s=run.cpu_s(),
        peak_memory_bytes=run.memory_bytes if loaded.has_memory else 0,
        fuel_used=fuel_used,
    )


def _sayable(error: str | None) -> str | None:
    """Cut what is said of a guest, and escape its control characters: names that it chose stand in it."""
    if error is None:
        return None
    return plain(error if len(error) <= _ERROR_MOST else f"{error[:_ERROR_MOST]}... ({len(error)} characters)")


def _with_dropped(stdout: Capture, stderr: Capture) -> bytes:
    """Standard error, and after it what was cut off, if anything."""
    notes = [
        f"[proplet: {capture.dropped} bytes of {name} above the output limit were dropped]\n"
        for name, capture in (("stdout", stdout), ("stderr", stderr))
        if capture.dropped
    ]
    return stderr.value() + "".join(notes).encode()
