"""The builder: a short-lived child that pulls and compiles, so that neither ever happens in the agent.

``python -m proplet.agent.builder FD PARENT MEMORY``; MEMORY is what it may use, in bytes. Place in the flow: `fetch`
sends one request at a time over the channel; stages come back, then the end. It is killed to cancel, and when it runs
out of memory it dies alone. The registry's libraries and the compiler are only loaded by the requests that need them.
"""

import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proplet.agent.worker_frames import RECEIVE_BYTES, Decoder, encode
from proplet.agent.worker_orders import BUILT, INVALID, PULL, REFUSED, STAGE, STORAGE
from proplet.agent.worker_start import enter

if TYPE_CHECKING:
    from proplet.agent.cache import Record
    from proplet.oci.layout import OciLayout
    from proplet.oci.pins import Pins

_OOM_SCORE = 700
_NICE = 10

Tell = Callable[[str, int, int], None]


class BuildError(Exception):
    """The request cannot be fulfilled; `reason` is a value of `wire.Reason`, `cause` an `OciError`'s, if it was one."""

    def __init__(self, reason: str, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.cause = cause


def main() -> None:
    """Serve requests until the channel ends."""
    channel = enter(oom_score=_OOM_SCORE, nice=_NICE)
    # Not RLIMIT_AS: the allocator and the engine reserve far more addresses than they ever use.
    limit = int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    decoder = Decoder()
    while data := channel.recv(RECEIVE_BYTES):
        for kind, fields in decoder.feed(data):
            channel.sendall(encode([_serve(kind, fields, lambda *stage: channel.sendall(encode([[STAGE, *stage]])))]))


def _serve(kind: int, fields: dict[str, Any], tell: Tell) -> list[Any]:
    try:
        return [BUILT, _pull(fields, tell) if kind == PULL else _compile(fields, tell)]
    except BuildError as error:
        return [REFUSED, error.reason, str(error), error.cause]
    except MemoryError:
        return [REFUSED, "memory_limit", "out of memory", ""]


def _pull(fields: dict[str, Any], tell: Tell) -> dict[str, Any]:
    from proplet.oci.digest import Digest
    from proplet.oci.errors import DiskFull, OciError
    from proplet.oci.layout import OciLayout
    from proplet.oci.pins import Pins
    from proplet.oci.pull import pull
    from proplet.oci.pulled import Progress, PullPolicy, PullStage

    names = {PullStage.RESOLVE: "fetching", PullStage.DOWNLOAD: "fetching", PullStage.VERIFY: "verifying"}

    def progress(stage: Progress) -> None:
        if stage.stage in names:
            tell(names[stage.stage], stage.bytes_done, stage.bytes_total or 0)

    # From the agent over a private socket: nobody else can have written it.
    settings = pickle.loads(fields["settings"])  # noqa: S301
    try:
        layout = OciLayout(Path(fields["store_dir"]))
        _let_go()
        _pinned.append(Pins(layout.root))  # until the next request: the agent pins it when it has the answer
        for spare in (2, 0, None):  # of what the store has, this fraction may stay if the disk is full
            try:
                pulled = pull(
                    fields["image"],
                    layout,
                    settings,
                    policy=PullPolicy(fields["policy"]),
                    expected_digest=Digest.parse(fields["digest"]) if fields["digest"] else None,
                    progress=progress,
                    pins=_pinned[0],
                )
                break
            except DiskFull:
                if spare is None or not _make_room(layout, fields, spare):
                    raise
    except OciError as error:
        raise BuildError(_REASONS.get(error.reason, "module_unavailable"), str(error), error.reason) from error
    return {
        "image_digest": str(pulled.manifest_digest),
        "module_digest": str(pulled.module_digest),
        "warnings": [*pulled.warnings, *_collect(layout, fields, fields["store_bytes"])],
    }


_pinned: list["Pins"] = []


def _let_go() -> None:
    while _pinned:
        _pinned.pop().close()


def _make_room(layout: "OciLayout", fields: dict[str, Any], fraction: int) -> bool:
    """Remove half, or all, of what nobody uses; say whether it is worth trying again."""
    from proplet.oci.survey import size_of

    before = size_of(layout)
    _collect(layout, fields, before // fraction if fraction else 0)
    return size_of(layout) < before or fraction > 0


def _collect(layout: "OciLayout", fields: dict[str, Any], budget: int) -> list[str]:
    """Hold the store's budget; what hinders that is said, and hinders no pull."""
    from functools import partial

    from proplet.agent.journal_needs import unfinished_needs
    from proplet.agent.ports import StorageError
    from proplet.oci.collecting import collect
    from proplet.oci.errors import OciError, StoreBusy

    needed = partial(unfinished_needs, Path(fields["journal"])) if fields["journal"] else dict
    try:
        collect(layout, budget, needed=needed)
    except StoreBusy:
        return []
    except (OciError, StorageError) as error:
        return [f"nothing could be collected in the store of modules: {error}"]
    return []


_UNTRUSTED: Final = "untrusted"
_REASONS: Final = {
    "invalid_policy": _UNTRUSTED,
    "image_denied": _UNTRUSTED,
    "signature_missing": _UNTRUSTED,
    "signature_invalid": _UNTRUSTED,
    "signature_untrusted": _UNTRUSTED,
    "signature_expired": _UNTRUSTED,
    "digest_mismatch": "digest_mismatch",
    "size_mismatch": "digest_mismatch",
    "not_wasm": INVALID,
    "disk_full": STORAGE,
    "store_read_only": STORAGE,
    "store_failed": STORAGE,
    "store_damaged": STORAGE,
}


def _compile(fields: dict[str, Any], tell: Tell) -> dict[str, Any]:
    from proplet.agent.builder_sections import COMPONENT_LAYER
    from proplet.agent.cache import CacheError, device_key, publish
    from proplet.agent.engines import refusal

    if (refused := refusal(fields["engine"])) is not None:
        raise BuildError("not_supported", f"nothing can be compiled here: {refused}")
    wasm, out = Path(fields["wasm"]), Path(fields["out"])
    tell("verifying", 0, 0)
    data = _read(wasm, fields["module_digest"])
    tell("compiling", 0, len(data))
    known = {"module_digest": fields["module_digest"], "metered": fields["metered"]}
    build = _component if data[6:8] == COMPONENT_LAYER else _core
    code, record = build(data, known, fields["engine"])
    try:
        publish(out, code, record, device_key(Path(fields["key_dir"])))
    except CacheError as error:
        raise BuildError(STORAGE, str(error)) from error
    return {}


def _core(data: bytes, known: dict[str, Any], engine: str) -> tuple[bytearray, "Record"]:
    from wasmtime import Engine, Module, WasmtimeError

    from proplet.agent.builder_sections import SectionError, declared
    from proplet.agent.cache import Record
    from proplet.agent.host_engine import configuration

    try:
        module = Module(Engine(configuration(metered=known["metered"], engine=engine)), data)
        outside = declared(data)
        code = module.serialize()
    except WasmtimeError as error:
        raise _refused(str(error)) from error
    except SectionError as error:
        raise BuildError("not_supported", str(error)) from error
    return code, Record(
        **known,
        size=len(code),
        has_memory=outside.has_memory,
        imports=outside.imports,
        functions=outside.functions,
        memories=outside.memories,
    )


def _component(data: bytes, known: dict[str, Any], engine: str) -> tuple[bytearray, "Record"]:
    from wasmtime import Engine, WasmtimeError
    from wasmtime.component import Component

    from proplet.agent.builder_component import described
    from proplet.agent.builder_memories import memory_count
    from proplet.agent.cache import Record
    from proplet.agent.host_engine import configuration

    try:
        used = Engine(configuration(metered=known["metered"], engine=engine))
        component = Component(used, data)
        outside, memories = described(component, used), memory_count(data)
        code = component.serialize()
    except WasmtimeError as error:
        raise _refused(str(error)) from error
    return code, Record(
        **known,
        size=len(code),
        has_memory=memories > 0,
        memory_count=memories,
        imports=outside.imports,
        functions=outside.functions,
        kind="component",
        waits=outside.waits,
        serves_http=outside.serves_http,
    )


def _read(wasm: Path, module_digest: str) -> bytes:
    from proplet.oci.digest import Digest

    try:
        data = wasm.read_bytes()
    except OSError as error:
        raise BuildError("module_unavailable", f"{wasm}: {error.strerror}") from error
    wanted = Digest.parse(module_digest)
    if Digest.of(data, wanted.algorithm) != wanted:
        wasm.unlink(missing_ok=True)
        raise BuildError(
            "digest_mismatch", f"the stored module {wanted.short} was damaged and is removed: send it again"
        )
    return data


def _refused(message: str) -> BuildError:
    text = " ".join(message.split())[:300]
    young = any(word in text for word in ("not enabled", "feature required", "must be enabled", "proposal"))
    if young or "multiple memories" in text:
        return BuildError("not_supported", f"the module needs a WebAssembly feature that is off here: {text}")
    return BuildError(INVALID, f"not a valid WebAssembly module: {text}")


if __name__ == "__main__":
    main()
