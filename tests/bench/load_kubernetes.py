"""A person at a Kubernetes API, and proplets that answer at once, as a process of its own.

``python -m tests.bench.load_kubernetes PARAMETERS``, both ways JSON. Tasks are created through the API server, `one`
after the other and then `burst` as fast as it takes them from several callers; when each is `completed` is seen in a
watch of it. The proplets connect, introduce themselves, beat every `beat_s` and answer every start; with none, others
run the Tasks.
"""

import asyncio
import http.client
import json
import ssl
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proplet.agent import codec, wire
from tests.bench.nodes import addition_task
from tests.bench.processes import pause, whole_cpu_s
from tests.bench.wire_client import Access, WireClient
from tests.support.modules import ADDITION_BASE64

_ENDED = ("completed", "failed", "skipped", "interrupted")
_CALLERS = 8
_CONNECT_AT_ONCE = 20
_PATIENCE_S = 120.0
_GROUP = "/apis/propeller.propeller.abstractmachines.fr/v1/namespaces"


class Cluster:
    """The Tasks of one namespace, through one connection for each thread."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._port: int = given["api_port"]
        self._tls = ssl.create_default_context(cafile=given["ca_file"])
        self._headers = {"Authorization": f"Bearer {given['token']}", "Content-Type": "application/json"}
        self._path = f"{_GROUP}/{given['namespace']}/tasks"
        self._own = threading.local()

    def _request(self, method: str, query: str = "", body: Any = None) -> http.client.HTTPResponse:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._tls)
            self._own.connection = connection
        connection.request(method, self._path + query, None if body is None else json.dumps(body), self._headers)
        answer: http.client.HTTPResponse = connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {self._path}{query}: {answer.status} {answer.read()[:500]!r}")
        return answer

    def create(self, name: str) -> None:
        self._request("POST", body=addition_task(name, file=ADDITION_BASE64)).read()

    def phases(self) -> Counter[str]:
        """How many Tasks are in which phase, by a list of them."""
        items = json.loads(self._request("GET").read())["items"]
        return Counter(str(item.get("status", {}).get("phase")) for item in items)

    def version(self) -> str:
        return str(json.loads(self._request("GET", "?limit=1").read())["metadata"]["resourceVersion"])

    def watch(self, since: str) -> http.client.HTTPResponse:
        return self._request("GET", f"?watch=true&resourceVersion={since}")


class Follower:
    """Notes when each Task ends, from one watch of all of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._ended: dict[str, tuple[float, str]] = {}
        self._news = threading.Condition()
        self._cluster = cluster
        self._since = cluster.version()
        self._trouble = ""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            while True:  # the server ends a watch that it finds slow
                for line in self._cluster.watch(self._since):
                    self._take(json.loads(line)["object"], time.perf_counter())
        except Exception as error:
            self._trouble = repr(error)
            raise

    def _take(self, item: dict[str, Any], now: float) -> None:
        self._since = item["metadata"]["resourceVersion"]
        phase, name = item.get("status", {}).get("phase"), item["metadata"]["name"]
        if phase in _ENDED and name not in self._ended:
            with self._news:
                self._ended[name] = (now, phase)
                self._news.notify_all()

    def ended(self, names: list[str]) -> float:
        """When the last of them had completed."""
        with self._news:
            if not self._news.wait_for(lambda: all(name in self._ended for name in names), _PATIENCE_S):
                missing = sum(name not in self._ended for name in names)
                raise RuntimeError(
                    f"{missing} of {len(names)} were not seen to end; a list has {dict(self._cluster.phases())}; "
                    f"the watch: {self._trouble or 'is open'}"
                )
        wrong = [name for name in names if self._ended[name][1] != "completed"]
        if wrong:
            raise RuntimeError(f"{len(wrong)} tasks ended otherwise: {wrong[0]} {self._ended[wrong[0]][1]}")
        return max(self._ended[name][0] for name in names)


def work(given: dict[str, Any]) -> dict[str, Any]:
    """Create the Tasks, wait for them, and measure what the manager takes meanwhile and before."""
    cluster, pid = Cluster(given), given["pid"]
    follower = Follower(cluster)
    latencies = []
    for number in range(given["one"]):
        name, began = f"{given['prefix']}-one-{number}", time.perf_counter()
        cluster.create(name)
        latencies.append(follower.ended([name]) - began)
    before, began = whole_cpu_s(pid), time.perf_counter()
    pause(given["rest_s"])
    rest_cpu = (whole_cpu_s(pid) - before) / (time.perf_counter() - began)
    names = [f"{given['prefix']}-burst-{number}" for number in range(given["burst"])]
    began = time.perf_counter()
    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(cluster.create, names))
    created_s = time.perf_counter() - began
    elapsed_s = follower.ended(names) - began if names else 0.0
    return {
        "latencies": latencies,
        "created_s": created_s,
        "elapsed_s": elapsed_s,
        "load_s": time.process_time(),
        "rest_cpu": rest_cpu,
    }


class Fleet:
    """Proplets that end every Task the moment it arrives."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._clients: list[tuple[str, WireClient]] = []

    async def connect(self) -> None:
        limit = asyncio.Semaphore(_CONNECT_AT_ONCE)
        passwords: dict[str, str] = self._given["passwords"]
        await asyncio.gather(*(self._connect(limit, name, password) for name, password in passwords.items()))

    async def _connect(self, limit: asyncio.Semaphore, name: str, password: str) -> None:
        base = self._given["base"]
        async with limit:
            access = Access(self._given["port"], name, password, base)
            client = await WireClient.connect(access, lambda topic, payload: self._hear(name, client, topic, payload))
            shared = [f"{base}/control/manager/{word}" for word in ("start", "stop", "hello")]
            own = [f"{base}/control/manager/{word}/{name}" for word in ("start", "stop")]
            await client.subscribe(*shared, *own)
            self._clients.append((name, client))
            self._introduce(name, client)

    def _introduce(self, name: str, client: WireClient) -> None:
        self._tell(client, "create", wire.Discovery(name, ext=wire.Announcement(topics=("own", "inventory"))))
        self._tell(client, "alive", wire.Alive(name))
        self._tell(client, "inventory", wire.Inventory(name))

    def _tell(self, client: WireClient, word: str, message: Any) -> None:
        client.publish(f"{self._given['base']}/control/proplet/{word}", codec.encode(message))

    def _hear(self, name: str, client: WireClient, topic: str, payload: bytes) -> None:
        if topic.endswith("/hello"):
            self._introduce(name, client)
        if "/manager/start" in topic and (start := json.loads(payload))["proplet_id"] == name:
            terms = wire.ResultTerms(attempt=start["ext"]["attempt"], reason=wire.Reason.OK)
            self._tell(client, "results", wire.Result(start["id"], name, "42", ext=terms))

    async def beat(self) -> None:
        """Heartbeats, evenly spread over the interval; ends only when a proplet is disconnected."""
        due = time.monotonic()
        while True:
            for name, client in self._clients:
                if client.lost:
                    raise RuntimeError(f"{name} was disconnected: {client.lost}")
                self._tell(client, "alive", wire.Alive(name))
                due += self._given["beat_s"] / len(self._clients)
                await asyncio.sleep(max(0.0, due - time.monotonic()))


async def run(given: dict[str, Any]) -> dict[str, Any]:
    fleet, loop = Fleet(given), asyncio.get_running_loop()
    await fleet.connect()
    working = asyncio.ensure_future(loop.run_in_executor(None, work, given))
    if not given["passwords"]:
        return await working
    beating = asyncio.create_task(fleet.beat())
    await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
    if beating.done():
        beating.result()
    beating.cancel()
    return await working


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
