"""``proplet image verify``: who signed an image, and whether every byte of it is as its digests say."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from proplet.agent import render
from proplet.agent.bars import bars
from proplet.agent.cli import FAILED, OK, CliError
from proplet.agent.cli_image_pull import complain, open_store
from proplet.oci import pull as pulling
from proplet.oci import signatures
from proplet.oci.errors import OciError
from proplet.oci.layout import OciLayout
from proplet.oci.policy import Decision, Key, Policy, Rule, load_policy, read_key
from proplet.oci.pulled import Progress, PulledModule
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings
from proplet.oci.sources import open_sources


def verify(options: argparse.Namespace) -> int:
    """Verify the image that is named; it is brought into the store for that, whatever the policy says of running it."""
    with open_store(options) as (layout, settings):
        policy = _policy(options, settings.registry)
        open_to_all = replace(settings.registry, signature_policy=None, signed_only=False)
        module: PulledModule | None = None
        try:
            with bars(quiet=options.quiet) as shown:
                shown.begin("pulling", options.image)

                def tell(progress: Progress) -> None:
                    shown.tell(progress.bytes_done, progress.bytes_total)

                module = pulling.pull(options.image, layout, open_to_all, progress=tell)
                shown.end()
            signer = _signer(module, layout, policy, open_to_all)
        except OciError as error:
            if options.output != "json":
                raise
            complain(options.image, error)
            said = {"verified": False, "reason": error.reason, "message": str(error)}
            sys.stdout.write(render.as_json({**_document(options.image, module), **said, "signer": None}))
            return FAILED
    if options.output == "json":
        said = {"verified": True, "reason": None, "message": None}
        sys.stdout.write(render.as_json({**_document(options.image, module), **said, "signer": signer}))
    else:
        sys.stdout.writelines(
            f"{title:<10} {render.one_line(text)}\n"
            for title, text in (
                ("Image", str(module.reference)),
                ("Digest", str(module.manifest_digest)),
                ("Module", f"{module.module_digest}, {render.size(module.size)}, whole"),
                ("Signer", signer),
            )
        )
    return OK


def _policy(options: argparse.Namespace, settings: RegistrySettings) -> Policy:
    """The policy, or the keys of the command line in place of it.

    Raises:
        InvalidPolicy: it cannot be used.
    """
    if not options.key:
        return load_policy(settings.signature_policy, signed_only=settings.signed_only)
    keys = tuple(Key(Path(file).name, read_key(Path(file), "--key"), Path(file)) for file in options.key)
    return Policy(Decision(Rule.REQUIRE, keys, "--key"), {}, {})


def _signer(module: PulledModule, layout: OciLayout, policy: Policy, settings: RegistrySettings) -> str:
    """Who signed it. Where the policy allows it unsigned, any key of the policy will do here: somebody asks.

    Raises:
        CliError: there is no key at all.
        OciError: nobody whose key is known did.
    """
    reference, digest = module.reference, module.manifest_digest
    name = reference.name if isinstance(reference, Reference) else reference.url
    decision = policy.decide(name)
    if decision.rule is Rule.ALLOW:
        if not policy.keys:
            raise CliError(f"{name} is whole, and there is no key to verify it with: give --key, or a policy with keys")
        policy = Policy(Decision(Rule.REQUIRE, tuple(policy.keys.values()), "image verify"), {}, policy.keys)
    if not isinstance(reference, Reference):
        return str(signatures.check(name, digest, layout, policy, None).signer)
    with open_sources(reference.with_digest(digest), settings) as sources:
        return str(signatures.check(reference, digest, layout, policy, sources).signer)


def _document(image: str, module: PulledModule | None) -> dict[str, Any]:
    return {
        "image": image,
        "digest": str(module.manifest_digest) if module else None,
        "moduleDigest": str(module.module_digest) if module else None,
        "size": module.size if module else None,
    }
