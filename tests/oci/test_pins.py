"""Pins: what one process needs, another does not remove; death ends them."""

import subprocess
import sys
from pathlib import Path

from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.pins import Claims, Pins, note_use

ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")

HOLDER = """
import sys
from pathlib import Path
from proplet.oci.digest import Digest
from proplet.oci.pins import Pins
pins = Pins(Path(sys.argv[1]))
pins.hold(Digest.parse(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_pinned_blob_cannot_be_claimed_and_a_claimed_one_not_pinned(tmp_path: Path) -> None:
    with Pins(tmp_path) as pins, Claims(tmp_path) as claims:
        assert pins.hold(ONE)
        assert not claims.claim(ONE)
        assert claims.claim(OTHER)
        assert not pins.hold(OTHER)
        assert not pins.holds(OTHER)
    with Pins(tmp_path) as pins:
        assert pins.hold(OTHER)


def test_a_pin_is_counted(tmp_path: Path) -> None:
    with Pins(tmp_path) as pins, Claims(tmp_path, looking=True) as claims:
        pins.hold(ONE)
        pins.hold(ONE)
        pins.release(ONE)
        assert not claims.claim(ONE)
        pins.release(ONE)
        assert claims.claim(ONE)
        pins.release(ONE)  # once too often changes nothing
        assert pins.hold(ONE)


def test_looking_keeps_nobody_from_pinning(tmp_path: Path) -> None:
    with Pins(tmp_path) as pins, Claims(tmp_path, looking=True) as claims:
        assert claims.claim(ONE)
        assert not claims.everything_is_held()
        assert pins.hold(ONE)
        pins.hold_everything()
        assert claims.everything_is_held()
        pins.release_everything()
        assert not claims.everything_is_held()


def test_a_killed_process_pins_nothing_any_more(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), str(ONE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with Claims(tmp_path) as claims:
            assert not claims.claim(ONE)
            assert claims.claim(OTHER)
    finally:
        holder.kill()
        holder.communicate()
    with Claims(tmp_path) as claims:
        assert claims.claim(ONE)


def test_thousands_of_pins_cost_one_descriptor(tmp_path: Path) -> None:
    with Pins(tmp_path) as pins:
        before = len(list(Path("/proc/self/fd").iterdir()))
        digests = [Digest.of(str(number).encode()) for number in range(3000)]
        assert all(pins.hold(digest) for digest in digests)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        with Claims(tmp_path, looking=True) as claims:
            assert not any(claims.claim(digest) for digest in digests)


def test_use_is_noted_once_a_day(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "store")
    digest = layout.add_blob(b"one")
    written = layout.path(digest).stat().st_mtime
    note_use(layout.root, digest, written + 3600)
    assert layout.path(digest).stat().st_mtime == written
    note_use(layout.root, digest, written + 25 * 3600)
    assert layout.path(digest).stat().st_mtime == written + 25 * 3600
    note_use(layout.root, OTHER)  # what is not there is no error
