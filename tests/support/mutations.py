"""Modules that somebody has damaged, at random: bytes changed, pieces and sections moved or taken from others."""

import random
from collections.abc import Sequence

_PREAMBLE = 8


class Mutations:
    """Damaged variants of `sources`: of small ones far more often than of large ones, which take long to compile."""

    def __init__(self, sources: Sequence[bytes], seed: int) -> None:
        self._chance = random.Random(seed)
        self._sources = [source for source in sources if len(source) > _PREAMBLE]
        self._weights = [min(1.0, (2000 / len(source)) ** 1.5) for source in self._sources]
        self._sections = {source: sections(source) for source in self._sources}

    def next(self) -> bytes:
        """Return one of them."""
        chance = self._chance
        (source,) = chance.choices(self._sources, self._weights)
        how = chance.random()
        if how < 0.5:
            return self._with_bytes_changed(source)
        if how < 0.6:
            return source[: chance.randrange(len(source))]
        if how < 0.7:
            return self._with_a_piece_moved(source)
        return self._with_sections_changed(source)

    def _with_bytes_changed(self, source: bytes) -> bytes:
        chance, changed = self._chance, bytearray(source)
        for _ in range(chance.choice((1, 1, 2, 4))):
            at, how = chance.randrange(_PREAMBLE, len(changed)), chance.random()
            if how < 0.3:
                changed[at] ^= 1 << chance.randrange(8)
            elif how < 0.6:
                changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            elif how < 0.8 and len(changed) > _PREAMBLE + 1:
                del changed[at]
            else:
                changed.insert(at, chance.randrange(256))
        return bytes(changed)

    def _with_a_piece_moved(self, source: bytes) -> bytes:
        chance = self._chance
        start = chance.randrange(_PREAMBLE, len(source))
        piece = source[start : start + chance.choice((1, 4, 16, 64))]
        to = chance.randrange(_PREAMBLE, len(source))
        return source[:to] + piece + source[to + chance.choice((0, len(piece))) :]

    def _with_sections_changed(self, source: bytes) -> bytes:
        chance, parts = self._chance, list(self._sections[source])
        for _ in range(chance.choice((1, 1, 2))):
            at, how = chance.randrange(len(parts)), chance.random()
            if how < 0.2 and len(parts) > 1:
                del parts[at]
            elif how < 0.4:
                parts.insert(chance.randrange(len(parts) + 1), parts[at])
            else:
                other = self._sections[self._relative(source)]
                piece = chance.choice(other)
                same = [index for index, part in enumerate(parts) if part[:1] == piece[:1]]
                if same and how < 0.8:
                    parts[chance.choice(same)] = piece
                else:
                    parts.insert(at, piece)
        return source[:_PREAMBLE] + b"".join(parts)

    def _relative(self, source: bytes) -> bytes:
        """Return another small one of the same kind, of which sections can be taken."""
        kin = [other for other in self._sources if other[4:8] == source[4:8] and len(other) < 10_000]
        return self._chance.choice(kin or [source])


def sections(data: bytes) -> list[bytes]:
    """Return the sections of a module or component, each with its head. Source: core specification, 5.5.2."""
    found, at = [], _PREAMBLE
    while at < len(data):
        size, shift, behind = 0, 0, at + 1
        while True:
            byte = data[behind]
            size |= (byte & 0x7F) << shift
            shift, behind = shift + 7, behind + 1
            if byte < 0x80:
                break
        found.append(data[at : behind + size])
        at = behind + size
    return found
