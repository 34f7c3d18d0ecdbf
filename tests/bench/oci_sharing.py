"""What is brought over once: an image for a hundred tasks, what had come before a cut, what the mirror has."""

from collections.abc import Iterator
from statistics import median

from tests.bench.nodes import agent_only, node_with_broker
from tests.bench.oci_transfers import blob_url, curl, pull_anew, push_noise
from tests.bench.rows import MIB, Plan, Row, number, row
from tests.manager.mirrors import put_image
from tests.support.modules import ADDITION, padded
from tests.support.mosquitto import free_port
from tests.support.registry import RunningRegistry
from tests.support.registry_proxy import cut_after, registry_proxy

TASKS = 100


def at_once(plan: Plan, registry: RunningRegistry) -> Iterator[Row]:
    """As many tasks of one image as are started at once, on a node that has nothing of it."""
    took, asked = [], []
    for number_ in range(plan.pick(5, 2)):
        image = push_noise(registry, f"crowd-{number_}", MIB).removeprefix(registry.address)
        with (
            registry_proxy(registry.address) as proxy,
            agent_only(plan.scratch / f"crowd-{number_}") as node,
        ):
            found = node.load("crowd", images=[proxy.address + image] * TASKS, window=TASKS)
            took.append(1000 * found["elapsed_s"])
            asked.append(
                (len(proxy.requests("/manifests/")), _most_often(one.path for one in proxy.requests("/blobs/")))
            )
    notes = [
        f"{len(took)} nodes just started, 1 MB, compiling included; worst {max(took):.0f} ms",
        f"requests at most: {max(m for m, _ in asked)} for manifests, {max(b for _, b in asked)} for any one blob",
    ]
    yield row(f"{TASKS} tasks of one new image, to all results", median(took), "ms", notes=notes)
    yield row("the same: requests for its module", max(b for _, b in asked), "", most=1.0)


def _most_often(paths: Iterator[str]) -> int:
    listed = list(paths)
    return max(map(listed.count, listed))


def resumed(plan: Plan, registry: RunningRegistry) -> Iterator[Row]:
    """A connection that is cut in the middle of a blob."""
    size = 64 * MIB
    image = push_noise(registry, "cut", size).removeprefix(registry.address)
    twice, ranges = [], []
    for _ in range(plan.pick(5, 2)):
        with registry_proxy(registry.address) as proxy:
            proxy.plan(blob_url(registry.address, registry.address + image).rpartition("/")[2], cut_after(size // 2))
            pull_anew(plan, proxy.address + image)
            asked = [one for one in proxy.requests("/blobs/") if len(one.body) > MIB]
            twice.append(sum(one.sent for one in asked) - size)
            ranges += [one.range for one in asked[1:]]
    assert ranges, "nothing was cut"
    assert all(ranges), "the transfer began anew"
    notes = [f"{len(twice)} pulls of {size // MIB} MB, each cut after half of them; median {number(median(twice))}"]
    yield row("bytes sent twice after a cut, worst", max(twice) / 1024, "KiB", notes=notes)


def mirrored(plan: Plan) -> Iterator[Row]:
    """A node whose mirror has the image: to a plain client, and to a pull."""
    size, rounds = plan.pick(256, 64) * MIB, plan.pick(7, 3)
    directory, port = plan.scratch / "mirror", free_port()
    with node_with_broker(directory, "mosquitto", manager=True, more=f"[manager.mirror]\nport = {port}\n"):
        put_image(directory / "state" / "modules", "localhost/large:v1", padded(ADDITION, size))
        image = f"127.0.0.1:{port}/large:v1"
        url = blob_url(f"127.0.0.1:{port}", image)
        first = curl(plan, url)
        plain: list[float] = []
        ours: list[float] = []
        for _ in range(rounds):
            plain.append(curl(plan, url))
            ours.append(pull_anew(plan, image)[0][0])
    rates = {"curl": size / MIB / median(plain), "pull": size / MIB / median(ours)}
    notes = [
        f"curl, medians of {rounds} times {size // MIB} MB, best {number(size / MIB / min(plain))}",
        f"a pull and its libraries {number(rates['pull'])}, best {number(size / MIB / min(ours))} MB/s",
        f"curl's first, for which the mirror hashes the blob, {number(size / MIB / first)} MB/s",
    ]
    yield row("throughput of the mirror", rates["curl"], "MB/s", notes=notes, **rates)
