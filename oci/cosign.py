"""The forms of cosign's signatures and their verification by public key. Pure: bytes in, values or errors out.

Two forms are read:

* *Simple signing*, what cosign 1 and 2 write: a JSON payload that names the image's digest, and beside it, in the
  annotation ``dev.cosignproject.cosign/signature`` of its layer, a signature of these bytes. Specified in
  ``specs/SIGNATURE_SPEC.md`` of the repository sigstore/cosign; the payload in containers-signature(5).
* The *Sigstore bundle*, version 0.3, what cosign 3 writes: a DSSE envelope around an in-toto statement whose subject is
  the image's digest, with the predicate ``https://sigstore.dev/cosign/sign/v1``. Specified in
  ``protos/sigstore_bundle.proto`` of sigstore/protobuf-specs, ``protocol.md`` of secure-systems-lab/dsse (what is
  signed is its "pre-authentication encoding") and ``spec/v1`` of in-toto/attestation.

Trust comes from the policy's keys alone. Certificates and transparency log entries inside signatures are not looked at:
they lead to Sigstore's public services, which a device without a network cannot ask.
"""

import base64
import binascii
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from proplet.oci import ed25519ph
from proplet.oci.digest import Digest
from proplet.oci.errors import InvalidDigest, InvalidPolicy, SignatureInvalid

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE = "dev.cosignproject.cosign/signature"

_PAYLOAD_TYPE = "cosign container image signature"
_STATEMENT_TYPES = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_IN_TOTO = "application/vnd.in-toto+json"
_SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_LEAST_RSA_BITS = 2048
_MAX_PER_BUNDLE = 16

_Check = Callable[[bytes, bytes], bool]


@dataclass(frozen=True, slots=True)
class Signature:
    """Something that claims to sign an image.

    ``message`` is what ``values`` sign. ``digest``: of the image it is for. ``name``: what it calls the image, "" where
    it does not say. ``hint``: which key it says it is by, as `PublicKey.hint`, "" where it does not say.
    """

    message: bytes
    values: tuple[bytes, ...]
    digest: Digest
    name: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are compared with.

    ``identity`` is its DER form: the same under every name. ``hint`` is what cosign calls it in bundles (SHA-256 of
    that form, in base64). ``not_before`` and ``not_after`` are a certificate's; None is no limit.
    """

    identity: bytes
    hint: str
    check: _Check
    not_before: datetime | None = None
    not_after: datetime | None = None

    def signed(self, signature: Signature) -> bool:
        """Whether this key made it."""
        return any(self.check(value, signature.message) for value in signature.values)


def read_public_key(pem: bytes, where: str) -> PublicKey:
    """The key in a PEM public key, or in the first certificate of a PEM file; ``where`` names it in errors.

    ECDSA on P-256, P-384 and P-521, Ed25519, and RSA from 2048 bits on.

    Raises:
        InvalidPolicy: it is no such key.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    not_before = not_after = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of certificates that are read although they break a rule
            if b"-----BEGIN CERTIFICATE-----" in pem:
                certificate = x509.load_pem_x509_certificate(pem)
                key: PublicKeyTypes = certificate.public_key()
                not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            else:
                key = serialization.load_pem_public_key(pem)
            identity = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidPolicy(f"{where} is no public key that can be read: {str(error)[:120]}") from None
    hint = base64.b64encode(bytes.fromhex(Digest.of(identity).hex)).decode()
    return PublicKey(identity, hint, _check_of(key, where), not_before, not_after)


def _check_of(key: "PublicKeyTypes", where: str) -> _Check:
    """How a key's signatures are compared: in all the ways in which versions of cosign sign with such a key.

    ECDSA and RSA with SHA-256, or ECDSA with the hash that belongs to the curve; Ed25519ph, or plain Ed25519.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        edwards, raw = key, key.public_bytes_raw()
        return lambda value, message: (
            _holds(lambda: edwards.verify(value, message)) or ed25519ph.holds(raw, value, message)
        )
    if isinstance(key, ec.EllipticCurvePublicKey):
        own: dict[str, HashAlgorithm] = {
            "secp256r1": hashes.SHA256(),
            "secp384r1": hashes.SHA384(),
            "secp521r1": hashes.SHA512(),
        }
        if key.curve.name not in own:
            raise InvalidPolicy(f"{where} is on the curve {key.curve.name}: use P-256, P-384 or P-521")
        elliptic = key
        choices = {h.name: ec.ECDSA(h) for h in (hashes.SHA256(), own[key.curve.name])}
        return lambda value, message: any(
            _holds(lambda how=how: elliptic.verify(value, message, how))  # type: ignore[misc]
            for how in choices.values()
        )
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise InvalidPolicy(f"{where} is an RSA key of {key.key_size} bits: use {_LEAST_RSA_BITS} or more")
        sha = hashes.SHA256()
        pads = (padding.PKCS1v15(), padding.PSS(padding.MGF1(sha), padding.PSS.AUTO))
        modulus = key
        return lambda value, message: any(
            _holds(lambda pad=pad: modulus.verify(value, message, pad, sha))  # type: ignore[misc]
            for pad in pads
        )
    raise InvalidPolicy(f"{where} is a key of a kind that cosign does not sign with: use ECDSA, Ed25519 or RSA")


def _holds(verify: Callable[[], None]) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        verify()
    except (InvalidSignature, ValueError):
        return False
    return True


def read_simple_signing(payload: bytes, signature: str) -> Signature:
    """The signature that a layer of cosign's older form is: the layer's bytes, and its annotation.

    Raises:
        SignatureInvalid: they are not of this form.
    """
    document = _json(payload, "the payload")
    critical = _table(document, "critical", "the payload")
    if critical.get("type") != _PAYLOAD_TYPE:
        raise SignatureInvalid(f"the payload is of the type {str(critical.get('type'))[:60]!r}, not cosign's")
    digest = _digest(_table(critical, "image", "the payload").get("docker-manifest-digest"), "the payload")
    name = _table(critical, "identity", "the payload").get("docker-reference", "")
    if not isinstance(name, str):
        raise SignatureInvalid("the payload's docker-reference is no text")
    return Signature(payload, (_base64(signature, "the signature"),), digest, name)


def read_bundle(raw: bytes) -> Signature | None:
    """The signature in a Sigstore bundle; None where what is signed is another statement about the image.

    Raises:
        SignatureInvalid: it is not of this form.
    """
    document = _json(raw, "the bundle")
    if document.get("mediaType") != BUNDLE:
        raise SignatureInvalid(f"the bundle is of the type {str(document.get('mediaType'))[:80]!r}, not version 0.3")
    envelope = _table(document, "dsseEnvelope", "the bundle")
    kind = envelope.get("payloadType")
    if kind != _IN_TOTO:
        raise SignatureInvalid(f"the bundle's envelope holds {str(kind)[:60]!r}, not an in-toto statement")
    payload = _base64(envelope.get("payload"), "the bundle's payload")
    statement = _json(payload, "the bundle's statement")
    if statement.get("_type") not in _STATEMENT_TYPES:
        raise SignatureInvalid("the bundle's statement is not an in-toto statement")
    if statement.get("predicateType") != _SIGN_PREDICATE:
        return None
    material = document.get("verificationMaterial")
    public_key = material.get("publicKey") if isinstance(material, dict) else None
    hint = public_key.get("hint") if isinstance(public_key, dict) else None
    return Signature(
        message=b"DSSEv1 %d %s %d %s" % (len(_IN_TOTO), _IN_TOTO.encode(), len(payload), payload),
        values=_values(envelope),
        digest=_subject(statement),
        hint=hint if isinstance(hint, str) else "",
    )


def _values(envelope: dict[str, Any]) -> tuple[bytes, ...]:
    found = envelope.get("signatures")
    if not isinstance(found, list) or not 1 <= len(found) <= _MAX_PER_BUNDLE:
        raise SignatureInvalid(f"the bundle's envelope has no list of 1 to {_MAX_PER_BUNDLE} signatures")
    if not all(isinstance(item, dict) for item in found):
        raise SignatureInvalid("the bundle's envelope has a signature that is none")
    return tuple(_base64(item.get("sig"), "the bundle's signature") for item in found)


def _subject(statement: dict[str, Any]) -> Digest:
    """The one subject: cosign writes one, and of several it would not be clear which is the image."""
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise SignatureInvalid("the bundle's statement has not one subject")
    digests = _table(subjects[0], "digest", "the bundle's subject")
    for algorithm in ("sha256", "sha512"):
        if algorithm in digests:
            return _digest(f"{algorithm}:{digests[algorithm]}", "the bundle's subject")
    raise SignatureInvalid("the bundle's subject has no digest that is known")


def not_yet_or_no_longer(now: datetime, not_before: datetime | None, *not_after: datetime | None) -> str | None:
    """Why a key does not count at a time: "expired on ..." or "is not valid before ..."; None where it counts."""
    for end in not_after:
        if end is not None and now >= end:
            return f"expired on {end.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    if not_before is not None and now < not_before:
        return f"is not valid before {not_before.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    return None


def _json(raw: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise SignatureInvalid(f"{what} is not JSON") from None
    if not isinstance(document, dict):
        raise SignatureInvalid(f"{what} is not a JSON object")
    return document


def _table(document: dict[str, Any], key: str, what: str) -> dict[str, Any]:
    found = document.get(key)
    if not isinstance(found, dict):
        raise SignatureInvalid(f"{what} has no {key!r}")
    return found


def _digest(text: object, what: str) -> Digest:
    try:
        return Digest.parse(text if isinstance(text, str) else "")
    except InvalidDigest:
        raise SignatureInvalid(f"{what} names no digest of an image") from None


def _base64(text: object, what: str) -> bytes:
    try:
        found = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not found:
        raise SignatureInvalid(f"{what} is not base64")
    return found
