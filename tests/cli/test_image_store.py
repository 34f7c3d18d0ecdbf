"""``proplet image ls``, ``rm`` and ``gc`` as a person types them, also beside a node that knows unfinished tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from proplet.agent.events import RunKey, SaveAccepted
from proplet.agent.journal import open_journal
from proplet.agent.journal_needs import unfinished_needs
from proplet.agent.ports import StorageError
from proplet.agent.wire import Start
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.pins import Pins
from tests.cli.command import Done, proplet_now
from tests.oci.stored import WASM, put_image, set_age

DAY = 86400.0


def image(home: Path, *arguments: str) -> Done:
    return proplet_now(home, ["image", *arguments], PROPLET_NODE_STATE_DIR=str(home / "state"))


@pytest.fixture
def store(home: Path) -> OciLayout:
    return OciLayout(home / "state" / "modules")


def listed(home: Path, *options: str) -> list[Any]:
    done = image(home, "ls", "-o", "json", *options)
    assert done.code == 0, done.err
    return list(json.loads(done.out))


def test_an_empty_store_says_so(home: Path) -> None:
    done = image(home, "ls")
    assert (done.code, done.out, done.err) == (0, "", "the store is empty\n")
    assert listed(home) == []


def test_images_are_listed_with_size_last_use_and_notes(home: Path, store: OciLayout) -> None:
    first = put_image(store, "r.io/b/second:1.0", WASM + b"2" * 5000, seconds_ago=3 * DAY)
    put_image(store, "localhost:5000/a", WASM)
    put_image(store, f"r.io/b/second:sha256-{first.hex}.sig", b"signature")
    put_image(store, "r.io/c:1", WASM + b"3")
    store.remove_blob(Digest.of(WASM + b"3"))
    with Pins(store.root) as pins:
        pins.hold(first)
        done = image(home, "ls")
        document = {one["names"][0]: one for one in listed(home)}
    head, *rows = done.out.splitlines()
    assert head.split() == ["NAME", "TAG", "OR", "DIGEST", "SIZE", "LAST", "USED", "NOTES"]
    assert [row.split()[0] for row in rows] == ["localhost:5000/a", "r.io/b/second", "r.io/c"]
    assert "   1.0   " in rows[1]
    assert "3d ago" in rows[1]
    assert rows[1].endswith("in use, signed")
    assert "damaged: the blob" in rows[2]
    assert document["r.io/b/second:1.0"]["digest"] == str(first)
    assert document["r.io/b/second:1.0"]["inUse"] is True
    assert document["r.io/b/second:1.0"]["module"] == str(Digest.of(WASM + b"2" * 5000))
    assert "missing" in document["r.io/c:1"]["damage"]
    assert len(listed(home, "--all")) == 4
    assert str(first) in image(home, "ls", "--digests").out


def test_images_are_removed_by_name_or_the_beginning_of_a_digest(home: Path, store: OciLayout) -> None:
    digest = put_image(store, "r.io/a:1", WASM + b"1")
    put_image(store, "docker.io/library/b:latest", WASM + b"2")
    done = image(home, "rm", digest.hex[:12], "b")
    assert (done.code, done.err) == (0, "")
    assert "removed r.io/a:1 (" in done.out
    assert listed(home, "--all") == []


def test_what_cannot_be_removed_is_said_and_nothing_is(home: Path, store: OciLayout) -> None:
    put_image(store, "r.io/a:1", WASM + b"1")
    pair = _two_alike(store)
    for wanted, why in (
        (["r.io/a:2"], "r.io/a:2 is not in the store"),
        ([pair], "the beginning of several digests"),
        (["r.io/a:1", "nothing"], "nothing is not in the store"),
    ):
        done = image(home, "rm", *wanted)
        assert done.code == 1
        assert why in done.err
    assert [one["names"] for one in listed(home)] == [["r.io/a:1"]]


def _two_alike(store: OciLayout) -> str:
    """Put blobs into the store until two begin alike; return that beginning."""
    seen = set[str]()
    for number in range(10_000):
        start = Digest.of(str(number).encode()).hex[:4]
        if start in seen:
            for other in range(number + 1):
                if Digest.of(str(other).encode()).hex.startswith(start):
                    store.add_blob(str(other).encode())
            return start
        seen.add(start)
    raise AssertionError


def test_a_collection_says_what_it_freed_and_a_dry_one_what_it_would(home: Path, store: OciLayout) -> None:
    put_image(store, "r.io/old:1", WASM + b"1" * 2000, seconds_ago=9 * DAY)
    put_image(store, "r.io/new:1", WASM + b"2" * 2000)
    dry = image(home, "gc", "--size", "3000", "--dry-run")
    assert "would be removed r.io/old:1 (" in dry.out
    assert "would be freed" in dry.out
    assert len(listed(home)) == 2
    done = image(home, "gc", "--size", "3000")
    assert done.out == dry.out.replace("would be ", "")
    assert [one["names"] for one in listed(home)] == [["r.io/new:1"]]
    assert image(home, "gc", "--size", "much").code == 2
    with Pins(store.root) as pins:
        pins.hold(Digest.of(WASM + b"2" * 2000))
        assert "in use" in image(home, "gc", "--size", "0").err
    assert len(listed(home)) == 1


@pytest.mark.anyio
async def test_what_unfinished_tasks_need_survives_a_node_that_does_not_run(home: Path, store: OciLayout) -> None:
    inline = store.add_blob(WASM + b"inline")
    set_age(store, inline, 9 * DAY)
    put_image(store, "r.io/a:1", WASM + b"1", seconds_ago=9 * DAY)
    put_image(store, "r.io/b:1", WASM + b"2", seconds_ago=9 * DAY)
    path = home / "state" / "journal.db"
    starts = (
        SaveAccepted(RunKey("inner", 1), Start("inner", "main"), str(inline), "hash", 1.0),
        SaveAccepted(RunKey("outer", 1), Start("outer", "main", image_url="r.io/a:1"), None, "hash", 1.0),
    )
    async with open_journal(path) as journal:
        await journal.load()
        await journal.commit(starts)
        # As a node leaves it that is killed now: its log beside it.
        killed = home / "killed"
        killed.mkdir()
        for name in ("journal.db", "journal.db-wal"):
            (killed / name).write_bytes((home / "state" / name).read_bytes())
    needs = {str(inline): "task inner", "r.io/a:1": "task outer"}
    assert unfinished_needs(path) == needs
    assert unfinished_needs(killed / "journal.db") == needs
    done = image(home, "gc", "--size", "0")
    assert done.code == 0
    assert "removed r.io/b:1" in done.out
    assert [one["names"] for one in listed(home, "--all")] == [["r.io/a:1"], []]
    refused = image(home, "rm", "r.io/a:1")
    assert (refused.code, refused.out) == (1, "")
    assert "in use by task outer" in refused.err


def test_a_journal_that_cannot_be_read_keeps_everything(home: Path, store: OciLayout) -> None:
    put_image(store, "r.io/a:1", seconds_ago=9 * DAY)
    path = home / "state" / "journal.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError):
        unfinished_needs(path)
    done = image(home, "gc", "--size", "0")
    assert done.code == 1
    assert "nothing is removed" in done.err
    assert store.references()
