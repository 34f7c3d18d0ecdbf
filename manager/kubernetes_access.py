"""How the API server is reached: from inside a pod or by a kubeconfig, and the sockets, which can be closed at once.

The only module that imports the `kubernetes` client. It takes 18 MB and a quarter of a second, so it is imported when a
cluster is configured and not before. Its typed models would take as much again: nothing here uses them.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from proplet.manager.ports import StoreUnavailableError

# A peer that is gone without a word is noticed in 30 s, also by a watch, which only listens.
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 15),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 30_000),
        )
        if hasattr(socket, name)
    ),
)
_NAME: Final = "proplet-manager"  # as the API server notes who has written a field
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod has it


class AccessError(StoreUnavailableError):
    """It is not known how to reach a cluster: there is no usable kubeconfig, and this is no pod."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the cluster is: by a kubeconfig, and one of its contexts ("" is its current one).

    Without either it is the service account in a pod, and elsewhere what `KUBECONFIG` or ~/.kube/config say.
    """

    kubeconfig: Path | None = None
    context: str = ""
    service_account: Path = SERVICE_ACCOUNT

    @property
    def in_cluster(self) -> bool:
        """Whether the pod's service account is used. Its token is read again every minute: Kubernetes rotates it."""
        return self.kubeconfig is None and not self.context and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def pod_namespace() -> str | None:
    """Return the namespace of the pod this runs in, None outside of one."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or None
    except OSError:
        return None


class Sockets:
    """The open connections, to end what waits on one: closing is the only thing that a blocked read notices."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Any] = {}  # by thread: the connection it uses
        self._cut: set[int] = set()
        self.closed = False

    def enter(self, connection: Any) -> None:
        """The calling thread goes on with this connection. Raises StoreUnavailableError: it is not to."""
        thread = threading.get_ident()
        with self._lock:
            if self.closed or thread in self._cut:
                raise StoreUnavailableError("the connection to the API server is closed: the manager is stopping")
            self._open[thread] = connection

    def leave(self) -> None:
        """The calling thread is done."""
        thread = threading.get_ident()
        with self._lock:
            self._open.pop(thread, None)
            self._cut.discard(thread)

    def cut(self, thread: int) -> None:
        """End whatever the thread `thread` waits for, and what it would begin to before it leaves."""
        with self._lock:
            self._cut.add(thread)
            connection = self._open.get(thread)
        if connection is not None:
            _cut(connection)

    def cut_all(self) -> None:
        """End what every thread waits for now."""
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            _cut(connection)

    def close(self) -> None:
        """End what every thread waits for, for good."""
        with self._lock:
            self.closed = True
        self.cut_all()


def _cut(connection: Any) -> None:
    opened = connection.sock
    if opened is not None:
        with suppress(OSError):  # it was closed meanwhile
            # The base's method: an SSLSocket's own takes the session away from under the thread that reads.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Client:
    """The Kubernetes client for one cluster. `renew` reads its credentials again, for when they were refused."""

    api: Any
    renew: Callable[[], None]


def make_client(access: Access, sockets: Sockets, connections: int) -> Client:
    """Return a client with a pool of `connections`; these are told to `sockets`.

    Raises:
        AccessError: it is not known how to reach a cluster.
    """
    try:
        from kubernetes import client
    except ImportError as error:
        raise AccessError("the Kubernetes client is not installed: pip install 'proplet[kubernetes]'") from error

    configuration = client.Configuration()
    _load(access, configuration)
    configuration.connection_pool_maxsize = connections
    configuration.retries = False  # who calls knows what may be done twice
    configuration.socket_options = list(_SOCKET_OPTIONS)
    api = client.ApiClient(configuration)
    api.user_agent = _NAME
    _track(api.rest_client.pool_manager, sockets)
    return Client(api, partial(_load, access, configuration))


def _load(access: Access, configuration: Any) -> None:
    """Read where the cluster is, and who we are. Raises AccessError."""
    from kubernetes import config
    from yaml import YAMLError

    loading: Any = config  # it has no types
    try:
        if access.in_cluster:
            account = access.service_account
            loader = loading.incluster_config.InClusterConfigLoader(str(account / "token"), str(account / "ca.crt"))
            loader.load_and_set(configuration)
        else:
            loading.load_kube_config(
                str(access.kubeconfig) if access.kubeconfig else None,
                access.context or None,
                configuration,
                persist_config=False,
            )
    except (config.ConfigException, YAMLError, OSError, ValueError, TypeError) as error:
        where = "the pod's service account" if access.in_cluster else str(access.kubeconfig or "the kubeconfig")
        raise AccessError(f"{where} does not say how to reach a cluster: {error}") from error


def _track(manager: Any, sockets: Sockets) -> None:
    """Make the pools of a urllib3 PoolManager tell `sockets` which thread uses which connection."""
    pools: dict[str, Any] = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():

        class Tracked(pool.ConnectionCls):  # type: ignore[name-defined, misc]
            parts: list[bytes] | None = None  # of a request that is being put together

            def connect(self) -> None:
                sockets.enter(self)
                super().connect()
                sockets.enter(self)  # there was no socket to close until now

            def request(self, *args: Any, **kwargs: Any) -> None:
                sockets.enter(self)
                parts = self.parts = list[bytes]()
                try:
                    super().request(*args, **kwargs)
                finally:
                    self.parts = None
                self.send(b"".join(parts))

            def send(self, data: Any) -> None:
                # Head and body in one record: one system call less here and one there.
                if self.parts is None:
                    super().send(data)
                else:
                    self.parts.append(bytes(data))

        pools[scheme] = type(f"Tracked{pool.__name__}", (pool,), {"ConnectionCls": Tracked})
    manager.pool_classes_by_scheme = pools


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what the client and its transport raise into StoreUnavailableError."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, ConfigException, HTTPError, OSError, ValueError) as error:
        raise StoreUnavailableError(f"{what}: the API server cannot be reached: {_plain(error)}") from error


def _plain(error: BaseException) -> str:
    said = getattr(error, "reason", None) or (error.args[0] if error.args else error)
    return str(said).replace("\n", ": ")
