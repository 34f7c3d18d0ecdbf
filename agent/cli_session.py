"""One command's conversation with a node: the client with its errors turned into messages and exit codes."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from proplet.agent.cli import FAILED, NOT_FOUND, TIMED_OUT, UNREACHABLE, USAGE, CliError
from proplet.agent.client import ApiError, Client, NodeUnreachableError, WatchEvent
from proplet.agent.render import Manifest, at

_GONE = 410
_AGAIN_S = 0.2

Manifests = list[Manifest]
Entries = list[dict[str, Any]]
Command = Callable[["Session", argparse.Namespace], int]


def run(options: argparse.Namespace, command: Command) -> int:
    """Connect to the node that the options name and carry out the command. Raises CliError."""
    with answered():
        return command(Session(connect(options)), options)


def connect(options: argparse.Namespace) -> Client:
    """Return the client for ``--server`` and ``--token-file``, else for this machine's node."""
    token = ""
    if options.token_file:
        try:
            token = Path(options.token_file).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise CliError(f"{options.token_file}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Client.connect(options.server, token=token)
    except ValueError as error:
        raise CliError(str(error), USAGE) from error


@contextmanager
def answered() -> Iterator[None]:
    """Turn the client's errors into CliError with the exit code that fits."""
    try:
        yield
    except NodeUnreachableError as error:
        raise CliError(str(error), UNREACHABLE) from error
    except ApiError as error:
        raise CliError(_explained(error), NOT_FOUND if error.status == 404 else FAILED) from error


def _explained(error: ApiError) -> str:
    if error.status == 401:
        return "the node wants its token, none or a wrong one was given: --token-file FILE, or PROPLET_TOKEN"
    return error.message


class Session:
    """The node, as commands use it. Every method raises CliError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def say(self, message: str) -> None:
        """Tell the person something that is no output."""
        sys.stderr.write(f"{message}\n")

    def complain(self, message: str) -> None:
        """Tell of a failure that does not end the command."""
        sys.stdout.flush()
        for line in message.splitlines():
            sys.stderr.write(f"proplet: error: {line}\n")

    def node(self) -> dict[str, Any]:
        """Return what the node is."""
        with answered():
            return self._client.node()

    def top(self, namespace: str | None) -> dict[str, Any]:
        """Return what tasks and proplets use."""
        with answered():
            return self._client.top(namespace)

    def list(self, kind: str, namespace: str | None) -> Manifests:
        """Return the manifests of a kind."""
        with answered():
            return Manifests(self._client.list(kind, namespace)["items"])

    def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """Return one manifest."""
        with answered():
            return self._client.get(kind, name, namespace)

    def apply(self, text: str) -> Entries:
        """Create or change what manifests say."""
        with answered():
            return Entries(self._client.apply(text))

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete one."""
        with answered():
            self._client.delete(kind, name, namespace)

    def start(self, kind: str, namespace: str, name: str) -> Manifest:
        """Ask for a run."""
        with answered():
            return self._client.start(name, namespace, kind=kind)

    def stop(self, kind: str, namespace: str, name: str) -> Manifest:
        """Ask for the end of a run."""
        with answered():
            return self._client.stop(name, namespace, kind=kind)

    def invoke(
        self, namespace: str, name: str, inputs: Sequence[str], env: Mapping[str, str], timeout_s: float
    ) -> dict[str, Any]:
        """Call a latent task. Raises CliError, with TIMED_OUT if nobody answered."""
        try:
            with answered():
                return self._client.invoke(name, namespace, inputs=inputs, env=env, timeout_s=timeout_s)
        except CliError as error:
            if isinstance(error.__cause__, ApiError) and error.__cause__.status == 504:
                raise CliError(str(error), TIMED_OUT) from error
            raise

    def logs(self, namespace: str, name: str, since: int, wait_s: int) -> dict[str, Any]:
        """Return a task's output after `since`, or what came of waiting for it."""
        with answered():
            return self._client.logs_since(name, namespace, since, wait_s)

    @contextmanager
    def watch(self, kind: str, namespace: str | None, name: str | None = None) -> "Iterator[Iterator[WatchEvent]]":
        """Open a watch: what there is, SYNCED, then changes, until the context ends."""
        with answered(), closing(_whole_watch(self._client, kind, namespace, name)) as events:
            yield events


def _whole_watch(
    client: Client, kind: str, namespace: str | None, name: str | None
) -> Generator[WatchEvent, None, None]:
    """Yield a watch's events; where the node forgot what came since, list again and yield what differs."""
    known: dict[tuple[str, str], Manifest] = {}
    synced = False
    while True:
        missing = dict(known)
        try:
            with closing(client.watch(kind, namespace=namespace, name=name)) as events:  # type: ignore[type-var]
                for event in events:
                    if event.object is not None:
                        key = str(at(event.object, "metadata.namespace")), str(at(event.object, "metadata.name"))
                        missing.pop(key, None)
                        if key in known and event.type != "DELETED" and _state(event.object) == _state(known[key]):
                            continue
                        _note(known, key, event)
                    elif synced:
                        for key, item in missing.items():
                            del known[key]
                            yield WatchEvent("DELETED", dict(item), event.version)
                        missing = {}
                        continue
                    else:
                        synced, missing = True, {}
                    yield event
            return
        except ApiError as error:
            if error.status != _GONE:
                raise
        threading.Event().wait(_AGAIN_S)


def _state(item: Manifest) -> tuple[Any, Any]:
    return at(item, "metadata.uid"), at(item, "metadata.resourceVersion")


def _note(known: dict[tuple[str, str], Manifest], key: tuple[str, str], event: WatchEvent) -> None:
    """Keep what is there now, without modules: they are large."""
    if event.type == "DELETED" or event.object is None:
        known.pop(key, None)
        return
    spec = event.object.get("spec") or {}
    known[key] = {**event.object, "spec": {**spec, "file": ""}} if "file" in spec else event.object


class DeadlineError(Exception):
    """The time given for a command is over."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End what runs inside after some time, whatever it waits for. Raises DeadlineError. Only in the main thread."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise DeadlineError

    before = signal.signal(signal.SIGALRM, over)
    # Zero would mean no timer at all.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
