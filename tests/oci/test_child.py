"""The child that pulls for others, as a process: one request in, one answer out, bounded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from proplet.oci.child import MODULE, SIGNATURES, Request, answer
from proplet.oci.digest import Digest
from proplet.oci.layout import OciLayout
from proplet.oci.settings import RegistrySettings
from tests.manager.mirrors import MODULE as MODULE_DIGEST
from tests.manager.mirrors import put_image
from tests.support.modules import module

MIB = 1024 * 1024


def run(data: bytes, *, parent: int | None = None, memory: int = 256 * MIB) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", MODULE, str(os.getpid() if parent is None else parent), str(memory)]
    return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)


def request(store: Path, image: str = "nowhere.example/x:1", **how: Any) -> Request:
    fields = {"digest": None, "policy": "Never", "store_dir": store, "settings": RegistrySettings(), **how}
    return Request(image, **fields)


def test_it_answers_with_what_is_in_the_store(tmp_path: Path) -> None:
    digest = put_image(tmp_path, "nowhere.example/x:1")
    done = run(request(tmp_path).encode())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["digest"], said["module_digest"], said["manifests"]) == (digest, MODULE_DIGEST, [digest])


def test_it_says_why_it_cannot(tmp_path: Path) -> None:
    said = json.loads(run(request(tmp_path).encode()).stdout)
    assert said["reason"] == "not_in_store"
    assert "nowhere.example/x:1" in said["message"]


def test_it_keeps_the_store_to_its_size_and_what_it_has_just_been_asked_for(tmp_path: Path) -> None:
    put_image(tmp_path, "nowhere.example/old:1", module("echo"))
    wanted = put_image(tmp_path, "nowhere.example/x:1")
    for blob in (tmp_path / "blobs/sha256").iterdir():
        os.utime(blob, (1, 1))
    assert answer(request(tmp_path, store_bytes=0))["digest"] == wanted
    assert set(OciLayout(tmp_path).references()) == {"nowhere.example/x:1"}
    assert OciLayout(tmp_path).verify(Digest.parse(MODULE_DIGEST))


def test_who_knows_a_digest_does_not_get_it_by_the_name_of_another_repository(tmp_path: Path) -> None:
    private = put_image(tmp_path, "nowhere.example/private/x:1", module("echo"))
    put_image(tmp_path, "nowhere.example/open/x:1")
    for how in ({"digest": private}, {"digest": None}):
        name = "nowhere.example/open/x:1" if how["digest"] else f"nowhere.example/open/x@{private}"
        said = answer(request(tmp_path, name, **how))
        assert said.get("reason") == "not_in_store", said
    assert answer(request(tmp_path, "nowhere.example/private/x:7", digest=private))["digest"] == private


def test_it_does_nothing_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    put_image(tmp_path, "nowhere.example/x:1")
    done = run(request(tmp_path).encode(), parent=1 if os.getpid() != 1 else 2)
    assert (done.returncode, done.stdout) == (1, b"")


def test_its_memory_is_bounded(tmp_path: Path) -> None:
    hungry = "import sys; from proplet.oci import child; child._enter(int(sys.argv[1]), 64 << 20); bytearray(256 << 20)"
    done = subprocess.run(
        [sys.executable, "-c", hungry, str(os.getpid())], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "MemoryError" in done.stderr


def test_signatures_are_those_of_a_digest(tmp_path: Path) -> None:
    assert answer(request(tmp_path, policy=SIGNATURES))["reason"] == "invalid_reference"
