"""Verification of Ed25519ph, the form of Ed25519 that signs a hash: cosign's own for these keys.

RFC 8032, sections 5.1 and 5.1.7: with ``dom2(1, "")`` in front of what is hashed, and SHA-512 of the message in its
place. ``cryptography`` verifies plain Ed25519 only, and from that nothing can be borrowed: the prefix goes into the
inner hash. Everything here is public, so that nothing depends on constant time; one verification takes 10 ms.
"""

import hashlib

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)  # of -1
_DOM2 = b"SigEd25519 no Ed25519 collisions" + bytes([1, 0])

# Extended homogeneous coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, x*y = T/Z.
_Point = tuple[int, int, int, int]


def holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature (64 bytes) of a message is by a public key (32 bytes, as in RFC 8032)."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, commitment = _decompress(public), _decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= _ORDER or _is_small(key):
        return False
    inner = _DOM2 + signature[:32] + public + hashlib.sha512(message).digest()
    challenge = int.from_bytes(hashlib.sha512(inner).digest(), "little") % _ORDER
    return _same(_times(scalar, _BASE), _add(commitment, _times(challenge, key)))


def _decompress(data: bytes) -> _Point | None:
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _add(one: _Point, two: _Point) -> _Point:
    a = (one[1] - one[0]) * (two[1] - two[0]) % _P
    b = (one[1] + one[0]) * (two[1] + two[0]) % _P
    c = 2 * one[3] * two[3] * _D % _P
    d = 2 * one[2] * two[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point, scalar = _add(point, point), scalar >> 1
    return total


def _same(one: _Point, two: _Point) -> bool:
    return (one[0] * two[2] - two[0] * one[2]) % _P == 0 and (one[1] * two[2] - two[1] * one[2]) % _P == 0


def _is_small(point: _Point) -> bool:
    """Of an order that divides eight: for such a key anybody can sign."""
    return _same(_times(8, point), (0, 1, 1, 0))


def _base() -> _Point:
    found = _decompress((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert found is not None
    return found


_BASE = _base()
