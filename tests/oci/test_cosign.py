"""What cosign writes, read and verified: vectors made by its versions 2 and 3, and damage to them."""

import base64
import contextlib
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from proplet.oci import ed25519ph
from proplet.oci.cosign import PublicKey, Signature, read_bundle, read_public_key, read_simple_signing
from proplet.oci.errors import InvalidPolicy, SignatureInvalid, TrustFault
from tests.support.signatures import DIGEST, FORMS, KEYS, NAME, vector

_SIGNATURE = "dev.cosignproject.cosign/signature"


def key(name: str) -> PublicKey:
    return read_public_key(vector(name, "key.pub"), name)


def signature(name: str, form: str) -> Signature:
    layer = vector(name, f"{form}.layer.json")
    if form == "simple":
        document = json.loads(vector(name, "simple.manifest.json"))
        return read_simple_signing(layer, document["layers"][0]["annotations"][_SIGNATURE])
    found = read_bundle(layer)
    assert found is not None
    return found


def pem(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | x25519.X25519PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KEYS)
def test_a_signature_by_the_real_cosign_verifies_with_its_key_and_with_no_other(name: str, form: str) -> None:
    found = signature(name, form)
    assert found.digest == DIGEST
    assert [other for other in KEYS if key(other).signed(found)] == [name]
    assert found.name == (NAME if form == "simple" else "")
    assert found.hint == (key(name).hint if form == "bundle" else "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KEYS)
def test_no_byte_of_what_is_signed_can_be_changed(name: str, form: str) -> None:
    found, public = signature(name, form), key(name)
    step = 40 if name == "ed25519" else 5  # that one is verified in Python
    for at in range(0, len(found.message), step):
        changed = bytearray(found.message)
        changed[at] ^= 1
        assert not public.signed(Signature(bytes(changed), found.values, found.digest))
    for at in range(0, len(found.values[0]), step):
        changed = bytearray(found.values[0])
        changed[at] ^= 1
        assert not public.signed(Signature(found.message, (bytes(changed),), found.digest))


def test_other_hashes_and_paddings_of_cosign_are_understood() -> None:
    message = b"message"
    modulus = rsa.generate_private_key(65537, 2048)
    sha = hashes.SHA256()
    for pad in (padding.PKCS1v15(), padding.PSS(padding.MGF1(sha), 32), padding.PSS(padding.MGF1(sha), 222)):
        made = Signature(message, (modulus.sign(message, pad, sha),), DIGEST)
        assert read_public_key(pem(modulus.public_key()), "key").signed(made)
    elliptic = ec.generate_private_key(ec.SECP384R1())
    made = Signature(message, (elliptic.sign(message, ec.ECDSA(hashes.SHA384())),), DIGEST)
    assert read_public_key(pem(elliptic.public_key()), "key").signed(made)
    edwards = ed25519.Ed25519PrivateKey.generate()
    public = edwards.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert read_public_key(public, "key").signed(Signature(message, (edwards.sign(message),), DIGEST))


def test_weak_and_foreign_keys_are_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    for text, what in (
        (pem(weak), "1024 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "secp256k1"),
        (pem(x25519.X25519PrivateKey.generate().public_key()), "kind"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no public key"),
    ):
        with pytest.raises(InvalidPolicy, match=what):
            read_public_key(text, "key")


def test_ed25519ph_is_that_of_the_rfc() -> None:
    # RFC 8032, section 7.3, "abc".
    secret = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
    made = bytes.fromhex(
        "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
        "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
    )
    private = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    public = private.public_key().public_bytes_raw()
    assert ed25519ph.holds(public, made, b"abc")
    assert not ed25519ph.holds(public, made, b"abd")
    assert not ed25519ph.holds(public, private.sign(b"abc"), b"abc")  # plain Ed25519 is another form
    high = int.from_bytes(made[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    assert not ed25519ph.holds(public, made[:32] + high.to_bytes(32, "little"), b"abc")  # the same, malleated
    small = bytes([1] + [0] * 31)  # the neutral element as a key: R is enough for a signature of anything
    assert not ed25519ph.holds(small, small + bytes(32), b"abc")


def test_attestations_are_no_signatures_and_are_passed_over() -> None:
    document = json.loads(vector("p256", "bundle.layer.json"))
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    statement["predicateType"] = "https://slsa.dev/provenance/v1"
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    assert read_bundle(json.dumps(document).encode()) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=200)
def test_whatever_stands_in_place_of_any_part_is_read_or_refused(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    document = json.loads(vector("p256", f"{form}.layer.json"))
    if form == "bundle" and data.draw(st.booleans()):
        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        _replace_one(statement, data)
        document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    else:
        _replace_one(document, data)
    raw = json.dumps(document).encode()
    try:
        found = read_bundle(raw) if form == "bundle" else read_simple_signing(raw, "AAAA")
    except SignatureInvalid:
        return
    if found is not None:
        assert isinstance(found.name, str)
        key("p256").signed(found)


def _replace_one(document: object, data: st.DataObject) -> None:
    """Put anything in the place of one value, at any depth."""
    while isinstance(document, dict | list) and document:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        at = data.draw(st.sampled_from(keys))
        if not isinstance(document[at], dict | list) or data.draw(st.booleans()):
            document[at] = data.draw(_JSON)
            return
        document = document[at]


@given(st.binary(max_size=200), st.text(max_size=40))
def test_any_bytes_are_refused_as_signatures_with_one_kind_of_error(raw: bytes, text: str) -> None:
    for read in (lambda: read_bundle(raw), lambda: read_simple_signing(raw, text)):
        with pytest.raises(SignatureInvalid):
            read()


@given(st.binary(max_size=120), st.sampled_from(["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"]), st.booleans())
def test_any_key_is_read_or_refused(data: bytes, kind: str, whole: bool) -> None:
    body = base64.encodebytes(data).decode() if whole else data.decode("latin-1")
    with contextlib.suppress(TrustFault):
        read_public_key(f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n".encode(), "key")


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(["key.pub", "valid.pem"]))
def test_a_key_that_is_damaged_is_read_or_refused(at: int, change: int, file: str) -> None:
    damaged = bytearray(vector("p256", file))
    damaged[at % len(damaged)] ^= change
    try:
        found = read_public_key(bytes(damaged), "key")
    except TrustFault:
        return
    found.signed(signature("p256", "simple"))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
@settings(max_examples=30)
def test_no_ed25519ph_signature_comes_about_by_chance(public: bytes, made: bytes) -> None:
    assert not ed25519ph.holds(public, made, b"message")
