"""The guest modules of ``tests/modules`` by name, and larger ones made on the spot."""

import base64
import hashlib
from pathlib import Path

DIRECTORY = Path(__file__).parent.parent / "modules"

# The module of the README and of `make demo`, as a manager sends it.
ADDITION_BASE64 = "AGFzbQEAAAABBwFgAn9/AX8DAgEABwgBBG1haW4AAAoJAQcAIAAgAWoL"
ADDITION = base64.b64decode(ADDITION_BASE64)


def module(name: str) -> bytes:
    """Return the binary of ``tests/modules/NAME.wat``."""
    return (DIRECTORY / f"{name}.wasm").read_bytes()


def module_digest(data: bytes) -> str:
    """Return the digest by which a store knows `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def padded(data: bytes, size: int) -> bytes:
    """Return the module `data`, made `size` bytes long by a custom section: much to fetch, little to compile."""
    name = b"\x03pad"
    room = size - len(data) - 1 - 5 - len(name)
    if room < 0:
        raise ValueError(f"{size} bytes are too few")
    return data + b"\0" + _length(len(name) + room) + name + b"\0" * room


def bulky(functions: int) -> bytes:
    """Return a module with that many functions to compile, some 0.3 KB each; ``main`` takes and returns an i32."""
    from wasmtime import wat2wasm

    step = "(local.set 0 (i32.xor (i32.mul (local.get 0) (i32.const {0})) (i32.rotl (local.get 0) (i32.const {1}))))"
    bodies = []
    for number in range(functions):
        steps = "".join(step.format(number * 31 + at * 7 + 3, at % 31 + 1) for at in range(24))
        bodies.append(f"(func $f{number} (param i32) (result i32) {steps} (local.get 0))")
    calls = "".join(f"(call $f{number}" for number in range(min(functions, 50)))
    main = f'(func (export "main") (param i32) (result i32) {calls} (local.get 0){")" * min(functions, 50)})'
    return bytes(wat2wasm(f"(module {''.join(bodies)} {main})"))


def _length(value: int) -> bytes:
    """Five bytes of LEB128, whatever the value."""
    return bytes((value >> shift) & 0x7F | (0x80 if shift < 28 else 0) for shift in range(0, 35, 7))
