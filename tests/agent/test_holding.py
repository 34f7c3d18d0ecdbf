"""What unfinished attempts need stays in the store, from their acceptance to their outcome and through a restart."""

from pathlib import Path

import pytest

from proplet.agent.events import Recovered, RecoveredAttempt, RunKey, SaveAccepted, SaveOutcome
from proplet.agent.fetch import ModulesSettings, open_modules
from proplet.agent.holding import Holding
from proplet.agent.lifecycle import State
from proplet.agent.wire import Start
from proplet.oci.collecting import collect
from proplet.oci.digest import Digest
from proplet.oci.errors import StoreBusy
from proplet.oci.layout import OciLayout
from tests.oci.stored import WASM, set_age

KEY, MODULE = RunKey("task", 1), WASM + b"inline"
ACCEPTED = SaveAccepted(KEY, Start("task", "main"), str(Digest.of(MODULE)), "hash", 1.0)
ENDED = SaveOutcome(KEY, State.COMPLETED, 2.0, "hash", "results", b"")

pytestmark = pytest.mark.anyio


def settings(path: Path) -> ModulesSettings:
    return ModulesSettings(path / "store", path / "cache", path / "key")


def stays(layout: OciLayout) -> bool:
    """Whether a module that was not used for days stays, whatever the budget."""
    set_age(layout, Digest.of(MODULE), 9 * 86400.0)
    collect(layout, 0)
    return layout.has(Digest.of(MODULE))


async def test_an_inline_module_is_held_from_its_arrival_to_the_outcome(tmp_path: Path) -> None:
    async with open_modules(settings(tmp_path)) as modules:
        layout, holding = OciLayout(tmp_path / "store"), Holding(modules.holds)
        await modules.keep(MODULE)
        assert stays(layout)
        holding.saved([ACCEPTED])
        assert stays(layout)
        holding.saved([])  # other turns
        assert stays(layout)
        holding.saved([ENDED])
        assert not stays(layout)


async def test_a_module_whose_start_was_not_accepted_is_held_no_longer_than_its_turn(tmp_path: Path) -> None:
    async with open_modules(settings(tmp_path)) as modules:
        layout, holding = OciLayout(tmp_path / "store"), Holding(modules.holds)
        await modules.keep(MODULE)
        holding.saved([])
        assert not stays(layout)


async def test_a_node_that_starts_holds_all_until_its_journal_has_spoken(tmp_path: Path) -> None:
    layout = OciLayout(tmp_path / "store")
    layout.add_blob(MODULE)
    async with open_modules(settings(tmp_path), starting=True) as modules:
        with pytest.raises(StoreBusy):
            stays(layout)
        attempt = RecoveredAttempt(KEY, ACCEPTED.start, ACCEPTED.module_digest, "hash", State.WAITING, 1.0)
        holding = Holding(modules.holds)
        holding.recovered(Recovered((attempt,)))
        assert stays(layout)
        holding.ended(KEY)
        assert not stays(layout)
