"""The store's budget, held by whoever pulls into it; what is being used stays."""

from pathlib import Path

import pytest

from proplet.agent.fetch import ModulesSettings, open_modules
from proplet.agent.ports import ModuleWanted
from proplet.oci.layout import OciLayout
from tests.oci.stored import put_image
from tests.support.registry import ADDITION, running_registry

pytestmark = [pytest.mark.anyio, pytest.mark.registry]


async def test_a_pull_makes_what_was_not_used_for_long_leave(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "store")
    put_image(layout, "r.io/old:1", ADDITION + b"\0\1\0", seconds_ago=9 * 86400.0)
    put_image(layout, "r.io/used:1", ADDITION + b"\0\2\0\0", seconds_ago=9 * 86400.0)
    used = str(layout.references()["r.io/used:1"].digest)
    with running_registry(tmp_path / "registry") as registry:
        digest = registry.push("add", "1", ADDITION)
        settings = ModulesSettings(tmp_path / "store", tmp_path / "cache", tmp_path / "key", store_bytes=0)
        async with open_modules(settings) as modules:
            modules.holds.hold("a task", used)
            artefact = await modules.prepare(ModuleWanted(image_url=f"{registry.address}/add:1"), lambda _stage: None)
    assert artefact.image_digest == str(digest)
    assert sorted(layout.references()) == sorted([f"{registry.address}/add:1", "r.io/used:1"])
