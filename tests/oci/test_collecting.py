"""What leaves the store when there is too much in it, and what never does."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proplet.oci.collecting import GRACE_S, collect, remove, sweep, used_by
from proplet.oci.digest import Digest
from proplet.oci.errors import StoreBusy, StoreInUse
from proplet.oci.layout import OciLayout
from proplet.oci.pins import Pins
from proplet.oci.survey import checked, survey
from tests.oci.stored import WASM, missing, put_image, set_age

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> OciLayout:
    return OciLayout(tmp_path / "store")


def module(number: int, size: int = 1000) -> bytes:
    return WASM + bytes([number]) * size


def names(store: OciLayout) -> list[str]:
    return sorted(store.references())


def test_what_was_not_used_for_longest_goes_first(store: OciLayout) -> None:
    for number, days in enumerate((3, 9, 1)):
        put_image(store, f"r.io/a:{number}", module(number), seconds_ago=days * DAY)
    size = survey(store).size
    done = collect(store, size - 1)
    assert [item.names for item in done.removed] == [("r.io/a:1",)]
    assert names(store) == ["r.io/a:0", "r.io/a:2"]
    assert done.freed == size - survey(store).size == done.removed[0].size > 1000
    assert missing(store) == []


def test_within_the_budget_nothing_goes(store: OciLayout) -> None:
    put_image(store, "r.io/a:1", seconds_ago=9 * DAY)
    done = collect(store, survey(store).size)
    assert (done.removed, done.freed, names(store)) == ((), 0, ["r.io/a:1"])


def test_a_dry_run_changes_nothing_and_says_the_same(store: OciLayout) -> None:
    for number in range(3):
        put_image(store, f"r.io/a:{number}", module(number), seconds_ago=DAY * (number + 1))
    before = names(store), set(survey(store).blobs)
    told = collect(store, 1500, dry_run=True)
    assert (names(store), set(survey(store).blobs)) == before
    assert collect(store, 1500) == told
    assert told.size <= 1500


def test_a_blob_that_another_image_has_stays(store: OciLayout) -> None:
    put_image(store, "r.io/old:1", module(1), seconds_ago=9 * DAY)
    put_image(store, "r.io/new:1", module(1))
    done = collect(store, survey(store).size - 1)
    assert names(store) == ["r.io/new:1"]
    assert done.removed[0].size < 1000  # only its manifest
    assert missing(store) == []


def test_signatures_go_with_their_image_and_not_before(store: OciLayout) -> None:
    image = put_image(store, "r.io/a:1", module(1), seconds_ago=DAY)
    put_image(store, f"r.io/a:sha256-{image.hex}.sig", b"signature", seconds_ago=9 * DAY)
    put_image(store, "r.io/a@" + str(Digest.of(b"x")), b"bundle", about=image, seconds_ago=9 * DAY)
    put_image(store, "r.io/b:1", module(2), seconds_ago=5 * DAY)
    collect(store, survey(store).size - 1)
    assert "r.io/b:1" not in names(store)
    assert len(names(store)) == 3
    remove(store, ["r.io/a:1"])
    assert names(store) == []
    assert survey(store).blobs == {}


def test_what_is_pinned_stays_also_under_another_name(store: OciLayout) -> None:
    put_image(store, "r.io/a:1", module(1), seconds_ago=9 * DAY)
    put_image(store, "r.io/b:1", module(2), seconds_ago=DAY)
    with Pins(store.root) as pins:
        pins.hold(Digest.of(module(1)))
        done = collect(store, 0)
        assert names(store) == ["r.io/a:1"]
        assert done.in_use > 1000
        with pytest.raises(StoreInUse, match=r"r\.io/a:1 is in use"):
            remove(store, ["r.io/a:1"])
    collect(store, 0)
    assert survey(store).blobs == {}


def test_a_configuration_that_all_images_share_keeps_none_of_them(store: OciLayout) -> None:
    put_image(store, "r.io/a:1", module(1), seconds_ago=9 * DAY)
    with Pins(store.root) as pins:
        pins.hold(Digest.of(b"{}"))
        collect(store, 0)
        assert set(survey(store).blobs) == {Digest.of(b"{}")}


def test_an_image_whose_tag_moved_on_stays_while_its_digest_is_needed(store: OciLayout) -> None:
    old = put_image(store, "r.io/a:1", module(1), seconds_ago=9 * DAY)
    put_image(store, "r.io/a:1", module(2), seconds_ago=9 * DAY)
    set_age(store, Digest.of(b"{}"), 9 * DAY)
    with Pins(store.root) as pins:
        pins.hold(old)
        collect(store, 0)
        assert names(store) == []
        assert set(survey(store).blobs) == {old, Digest.of(module(1)), Digest.of(b"{}")}
    collect(store, 0)
    assert survey(store).blobs == {}


def test_what_unfinished_tasks_need_stays_and_they_are_named(store: OciLayout) -> None:
    inline = store.add_blob(module(1))
    put_image(store, "r.io/a:1", module(2), seconds_ago=9 * DAY)
    set_age(store, inline, 9 * DAY)
    told = {str(inline): "task one", "r.io/a:1": "task two"}
    assert collect(store, 0, needed=lambda: told).removed == ()
    with pytest.raises(StoreInUse, match="in use by task two"):
        remove(store, ["r.io/a:1"], lambda: told)
    users = used_by(store, survey(store), told)
    assert sorted(users.values()) == [" by task one", " by task two"]


def test_a_node_that_ends_meanwhile_leaves_its_needs_to_the_journal(store: OciLayout) -> None:
    inline = store.add_blob(module(1))
    set_age(store, inline, 9 * DAY)
    answers = iter([None, {str(inline): "task one"}])
    assert collect(store, 0, needed=lambda: next(answers)).removed == ()


def test_while_a_node_starts_nothing_goes(store: OciLayout) -> None:
    put_image(store, "r.io/a:1", seconds_ago=9 * DAY)
    with Pins(store.root) as pins:
        pins.hold_everything()
        with pytest.raises(StoreBusy):
            collect(store, 0)
        with pytest.raises(StoreBusy):
            remove(store, ["r.io/a:1"])
        pins.release_everything()
        assert len(collect(store, 0).removed) == 1


def test_what_has_no_name_yet_has_some_time_to_get_one(store: OciLayout) -> None:
    young = store.add_blob(module(1))
    set_age(store, store.add_blob(module(2)), GRACE_S + 1)
    assert [item.digest for item in collect(store, 0).removed] == [Digest.of(module(2))]
    assert store.has(young)
    written = store.path(young).stat().st_mtime
    assert collect(store, 0, now=written - DAY).removed  # a clock that was set back keeps nothing for ever


def test_one_of_two_names_can_be_removed_without_the_image(store: OciLayout) -> None:
    digest = put_image(store, "r.io/a:1")
    store.set_reference("r.io/a:2", store.references()["r.io/a:1"])
    assert remove(store, ["r.io/a:1"]).freed == 0
    assert names(store) == ["r.io/a:2"]
    found = survey(store)
    remove(store, [image for image in found.images if image.digest == digest])
    assert survey(store).blobs == {}


def test_downloads_that_were_broken_off_go_after_a_day(store: OciLayout) -> None:
    directory = store.root / "blobs" / "sha256"
    old, young, busy = (directory / f".partial-{letter * 64}" for letter in "abc")
    for path in (old, young, busy):
        path.write_bytes(b"12345")
    for path in (old, busy):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    with busy.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(store, dry_run=True) == 5
        assert old.exists()
        assert sweep(store) == 5
    assert (old.exists(), young.exists(), busy.exists()) == (False, True, True)


def test_a_module_out_of_a_layer_goes_with_the_layer(store: OciLayout) -> None:
    put_image(store, "r.io/a:1", b"a layer", seconds_ago=9 * DAY)
    layer, inner = Digest.of(b"a layer"), store.add_blob(module(7))
    (store.root / "unpacked").mkdir()
    note = store.root / "unpacked" / f"sha256-{layer.hex}"
    note.write_text(str(inner))
    assert survey(store).loose == ()
    with Pins(store.root) as pins:
        pins.hold(inner)
        assert collect(store, 0).removed == ()
    collect(store, 0)
    assert not note.exists()
    assert survey(store).blobs == {}


def test_damage_is_said(store: OciLayout) -> None:
    put_image(store, "r.io/whole:1", module(1))
    put_image(store, "r.io/lost:1", module(2))
    put_image(store, "r.io/rotten:1", module(3))
    top = put_image(store, "r.io/top:1", module(4))
    store.remove_blob(Digest.of(module(2)))
    store.path(Digest.of(module(3))).write_bytes(module(3)[:-1] + b"x")
    store.path(top).write_bytes(b"{}")
    said = {image.names[0]: image.damage for image in checked(store, survey(store).images)}
    assert said["r.io/whole:1"] == ""
    assert "is missing" in said["r.io/lost:1"]
    assert "has changed" in said["r.io/rotten:1"]
    assert "has changed" in said["r.io/top:1"]
    collect(store, 0)
    remove(store, names(store))
    assert names(store) == []


PULLER = """
import sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.pins import Pins
from tests.oci.stored import WASM, put_image
layout, who = OciLayout(Path(sys.argv[1])), sys.argv[2]
for number in range(40):
    module = WASM + bytes([number % 4]) * 5000
    with Pins(layout.root) as pins:
        for wanted in (Digest.of(module), Digest.of(b"{}")):
            pins.hold(wanted, wait=True)
        put_image(layout, f"r.io/{who}:{number % 6}", module, seconds_ago=86400.0)
print("done", flush=True)
"""


def test_a_collection_beside_pulls_never_leaves_a_name_without_its_blobs(store: OciLayout) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pullers = [
        subprocess.Popen([sys.executable, "-c", PULLER, str(store.root), who], stdout=subprocess.PIPE, env=environment)
        for who in ("a", "b")
    ]
    collected = 0
    try:
        while any(puller.poll() is None for puller in pullers):
            collected += len(collect(store, 7000).removed)
            with store.editing():  # nobody names or removes anything while this looks
                assert missing(store) == []
    finally:
        for puller in pullers:
            puller.kill()
            puller.communicate()
    assert [puller.returncode for puller in pullers] == [0, 0]
    assert collected > 0
