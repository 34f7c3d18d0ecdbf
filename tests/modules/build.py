"""Builds the guest modules beside their sources: ``python tests/modules/build.py``. The results are committed.

Crates (Rust with dependencies) are built with ``--crates`` only: that downloads them, and takes minutes.
Those in C need clang and wasm-ld (Debian: ``apt-get install clang lld``), or, where they use a C library
(``wasi_*.c``), zig (``pip install ziglang``; 0.17.1 made them); those in Rust a rustc with the target wasm32-wasip2
(``rustup target add wasm32-wasip2``); AssemblyScript asc (``npm install assemblyscript``). Without them they are left
as they are.
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from wasmtime import wat2wasm

HERE = Path(__file__).parent
ZIG = "-m ziglang cc -target wasm32-wasi -std=gnu11 -Wall -Wextra -Werror -Os -s -Wl,-z,stack-size=65536"
CLANG = "clang --target=wasm32 -std=c11 -Wall -Wextra -Werror -Os -ffreestanding -fno-builtin -nostdlib -Wl,--strip-all"
RUSTC = (
    "rustc --target wasm32-wasip2 --edition 2021 -C opt-level=z -C lto=fat -C panic=abort -C codegen-units=1"
    " -C strip=symbols"
)

for source in sorted(HERE.glob("*.wat")):
    source.with_suffix(".wasm").write_bytes(wat2wasm(source.read_text()))
# The eight bytes by which a component is known.
(HERE / "component.wasm").write_bytes(b"\0asm\x0d\0\1\0")
for source in sorted(HERE.glob("*.c")):
    if source.name.startswith("wasi_"):
        command = [sys.executable, *ZIG.split(), "-o", str(source.with_suffix(".wasm")), str(source)]
        if find_spec("ziglang") and subprocess.run(command, check=False).returncode == 0:
            source.with_suffix(".wasm").chmod(0o644)
        else:
            print(f"{source.name}: not built, there is no zig (pip install ziglang)")
    elif shutil.which("clang") and shutil.which("wasm-ld"):
        subprocess.run([*CLANG.split(), "-o", source.with_suffix(".wasm"), source], check=True)
    else:
        print(f"{source.name}: not built, there is no clang with wasm-ld (apt-get install clang lld)")
for source in sorted(HERE.glob("*.rs")):
    # In its directory and by its bare name: a panic tells the path.
    command = [*RUSTC.split(), "-o", source.with_suffix(".wasm").name, source.name]
    if shutil.which("rustc") and subprocess.run(command, cwd=HERE, check=False).returncode == 0:
        source.with_suffix(".wasm").chmod(0o644)
    else:
        print(f"{source.name}: not built, there is no rustc with wasm32-wasip2 (rustup target add wasm32-wasip2)")
for source in sorted(HERE.glob("*.ts")):
    command = ["asc", source.name, *"-O3s --use abort= -o".split(), source.with_suffix(".wasm").name]
    if not shutil.which("asc") or subprocess.run(command, cwd=HERE, check=False).returncode:
        print(f"{source.name}: not built, there is no asc on the PATH (npm install assemblyscript)")
for crate in sorted(HERE.glob("*/Cargo.toml")) if "--crates" in sys.argv else ():
    with tempfile.TemporaryDirectory() as target:
        build = ["cargo", "build", "--locked", "--release", "--target", "wasm32-wasip2", "--target-dir", target]
        subprocess.run(build, cwd=crate.parent, check=True)
        (built,) = (Path(target) / "wasm32-wasip2" / "release").glob("*.wasm")
        crate.parent.with_suffix(".wasm").write_bytes(built.read_bytes())
