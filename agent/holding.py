"""What unfinished attempts need of the store of modules: held from their acceptance until their outcome is saved.

Place in the flow: the shell tells what the journal held, what it has saved and which modules are ready. What waits to
be run again keeps its module, too: nobody may be there to send it another time.
"""

from collections.abc import Sequence

from proplet.agent.events import Recovered, RunKey, Save, SaveAccepted, SaveOutcome
from proplet.agent.ports import KEPT, Artefact, Holds


class Holding:
    """By attempt. Without `holds` nothing is ever collected, and nothing need be held."""

    def __init__(self, holds: Holds | None) -> None:
        self._holds = holds

    def recovered(self, held: Recovered) -> None:
        """What the journal held is needed, and nothing else yet."""
        if self._holds is not None:
            for attempt in held.unfinished:
                self._holds.hold(attempt.key, attempt.module_digest, attempt.image_digest)
            self._holds.started()

    def ready(self, key: RunKey, artefact: Artefact) -> None:
        """An attempt is about to use a module."""
        if self._holds is not None:
            self._holds.hold(key, artefact.module_digest, artefact.image_digest)

    def ended(self, key: RunKey) -> None:
        """An attempt needs nothing any more."""
        if self._holds is not None:
            self._holds.release(key)

    def saved(self, saves: Sequence[Save]) -> None:
        """The journal holds these now."""
        if self._holds is None:
            return
        for save in saves:
            if isinstance(save, SaveAccepted):
                self._holds.hold(save.key, save.module_digest)
            elif isinstance(save, SaveOutcome):
                self._holds.release(save.key)
        self._holds.release(KEPT)
