"""Which modules of the store the node's work needs: pinned from the moment they are accepted until the work has ended.

Place in the flow: `fetch` holds what it is about to have compiled, the shell what every unfinished attempt needs. While
a node starts, everything is held until the attempts in its journal have said what they need.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from typing import Final

from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, OciError
from proplet.oci.layout import OciLayout
from proplet.oci.pins import NOTED_S, Pins, note_use

log = logging.getLogger(__name__)

_REMEMBERED: Final = 1024


class ModuleHolds:
    """The pins of one process, by who has them. On the event loop; never waits, never fails."""

    def __init__(self, layout: OciLayout, *, starting: bool = False) -> None:
        """Of a node that is `starting`, everything is held until `started`."""
        self._root = layout.root
        self._by_holder: dict[Hashable, set[Digest]] = {}
        self._noted: OrderedDict[Digest, float] = OrderedDict()
        self._pins: Pins | None = None
        self._complained = False
        with suppress(OciError):  # a store that cannot even be locked loses nothing
            self._pins = Pins(layout.root)
            if starting:
                self._pins.hold_everything()

    def started(self) -> None:
        """What is held now is all that is needed."""
        if self._pins is not None:
            self._pins.release_everything()

    def hold(self, holder: Hashable, *digests: str | None) -> bool:
        """Keep blobs in the store for `holder`, until it is released; False if one of them is just being removed."""
        held, all_of_them = self._by_holder.setdefault(holder, set()), True
        for text in digests:
            with suppress(InvalidDigest):
                digest = Digest.parse(text) if text else None
                if digest is None or digest in held or self._pins is None:
                    continue
                if self._pinned(self._pins, digest):
                    held.add(digest)
                    self._note(digest)
                else:
                    all_of_them = False
        return all_of_them

    def release(self, holder: Hashable) -> None:
        """`holder` needs nothing any more. What was used for long counts as used just now."""
        for digest in self._by_holder.pop(holder, ()):
            self._note(digest)
            if self._pins is not None:
                with suppress(OciError):
                    self._pins.release(digest)

    def close(self) -> None:
        """Drop everything."""
        self._by_holder.clear()
        if self._pins is not None:
            self._pins.close()

    def _note(self, digest: Digest) -> None:
        now = time.monotonic()
        if now - self._noted.get(digest, -NOTED_S) >= NOTED_S:
            self._noted[digest] = now
            self._noted.move_to_end(digest)
            while len(self._noted) > _REMEMBERED:
                self._noted.popitem(last=False)
            note_use(self._root, digest)

    def _pinned(self, pins: Pins, digest: Digest) -> bool:
        try:
            return pins.hold(digest)
        except OciError as error:  # no more locks: to go on without is better than not to go on
            if not self._complained:
                self._complained = True
                log.warning("what tasks need cannot be pinned in the store: %s", error)
            return True
