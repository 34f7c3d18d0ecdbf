"""``proplet image``: what is known of a module or an image without running it."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import anyio
from anyio import to_thread

from proplet.agent import inspection, parts, render
from proplet.agent.cache import CompileCache, Record
from proplet.agent.cli import OK, CliError
from proplet.agent.cli_run import configured, local_module, own_directory, prepared
from proplet.agent.config_schema import NodeSettings
from proplet.agent.fetch import open_modules
from proplet.agent.ports import Artefact, ModuleError, ModuleKind, StorageError

_KINDS = {ModuleKind.CORE: "core module", ModuleKind.COMPONENT: "component"}


def inspect(options: argparse.Namespace) -> int:
    """Show what a module imports and exports, and what that means. It is compiled, as for a run, and kept."""
    seen = anyio.run(_look, options, configured(options), local_module(options.module))
    if options.output == "json":
        sys.stdout.write(render.as_json(seen.document()))
    else:
        sys.stdout.writelines(f"{line}\n" for line in seen.lines())
    return OK


async def _look(options: argparse.Namespace, settings: NodeSettings, data: bytes | None) -> "_Seen":
    try:
        own_directory(settings.node.state_dir)
        async with open_modules(parts.modules_settings(settings)) as modules:
            artefact = await prepared(modules, options, data)
            size = None if artefact.wasm is None else artefact.wasm.stat().st_size
        signer = await to_thread.run_sync(_signer, settings, options.module, artefact.image_digest)
    except (ModuleError, StorageError) as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror}") from error
    record = CompileCache(artefact.path.parent.parent, 0).find(artefact.path)
    if record is None:
        raise CliError(f"{artefact.path} has gone meanwhile; try again")
    return _Seen(options.module, artefact, record, len(data) if data is not None else size, signer)


def _signer(settings: NodeSettings, image: str, digest: str | None) -> str | None:
    """Who signed an image, by the store's signatures, where the policy asks for it; the rest was seen to before."""
    if digest is None:
        return None
    from proplet.oci.digest import Digest
    from proplet.oci.errors import OciError
    from proplet.oci.layout import OciLayout
    from proplet.oci.policy import load_policy
    from proplet.oci.reference import Reference
    from proplet.oci.signatures import check

    modules = parts.modules_settings(settings)
    try:
        policy = load_policy(modules.registry.signature_policy, signed_only=modules.registry.signed_only)
        about = image.partition("#")[0] if image.startswith("https://") else Reference.parse(image)
        layout = OciLayout(modules.store_dir.absolute())
        return check(about, Digest.parse(digest), layout, policy, None).signer
    except OciError as error:
        raise CliError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Seen:
    """A module that has been looked at; `size` is that of its own bytes."""

    name: str
    artefact: Artefact
    record: Record
    size: int | None
    signer: str | None = None

    @property
    def component(self) -> bool:
        return self.artefact.kind is ModuleKind.COMPONENT

    @property
    def asks(self) -> tuple[inspection.Ask, ...]:
        return inspection.asks(self.record.imports, component=self.component, serves_http=self.artefact.serves_http)

    @property
    def exports(self) -> dict[str, str]:
        return inspection.signatures(self.record.functions, component=self.component)

    @property
    def isolation(self) -> tuple[str, str]:
        artefact = self.artefact
        return inspection.isolation(component=self.component, waits=artefact.waits, serves_http=artefact.serves_http)

    def document(self) -> dict[str, object]:
        """For programs."""
        kind, why = self.isolation
        return {
            "module": self.name,
            "digest": self.artefact.module_digest,
            "imageDigest": self.artefact.image_digest,
            "signer": self.signer,
            "size": self.size,
            "compiledSize": self.record.size,
            "kind": self.artefact.kind.value,
            "servesHttp": self.artefact.serves_http,
            "isolation": {"class": kind, "meaning": why},
            "canAskFor": [asdict(ask) for ask in self.asks],
            "exports": [{"name": name, "type": kind} for name, kind in self.exports.items()],
        }

    def lines(self) -> Iterator[str]:
        """For people; names come from the module and are shown without what could move a cursor."""
        artefact = self.artefact
        yield f"Module     {render.one_line(self.name)}"
        yield f"Digest     {artefact.module_digest}"
        if artefact.image_digest:
            yield f"Image      {artefact.image_digest}"
            yield f"Signer     {render.one_line(self.signer or 'nobody is asked for by the signature policy')}"
        yield f"Size       {render.size(self.size)}, compiled {render.size(self.record.size)}"
        yield f"Kind       {_KINDS[artefact.kind]}{', serves HTTP' if artefact.serves_http else ''}"
        yield f"Isolation  {self.isolation[1]}"
        yield "Can ask for" if self.asks else "Can ask for nothing: it imports nothing"
        for ask in self.asks:
            yield f"  {ask.what}: {ask.given}"
            yield f"    {render.one_line(', '.join(ask.imports))}"
        yield "Exports" if self.exports else "Exports no functions"
        for name, kind in self.exports.items():
            yield f"  {render.one_line(name)}{': ' if self.component else ' '}{render.one_line(kind)}"
