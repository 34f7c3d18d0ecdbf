"""A component in Python: ``componentize-py -d world.wit -w words componentize app``. `wit_world` is made by that."""

from collections import Counter

import wit_world


class WitWorld(wit_world.WitWorld):
    """What the world `words` exports."""

    def count(self, text: str) -> list[tuple[str, int]]:
        """How often each word is there; a text without words is refused, by a trap."""
        if not text.split():
            raise ValueError("no words")
        return sorted(Counter(text.split()).items())
