"""The errors of this package: one tree, each with a stable reason for machines and one line for people.

::

    OciError
    ├── InvalidReference          invalid_reference     the text is not an image reference
    ├── InvalidDigest             invalid_digest        the text is not a digest
    ├── InvalidCredentials        invalid_credentials   a credentials file or helper cannot be used
    ├── PullCancelled             cancelled             the caller asked to stop
    ├── RegistryFault                                   what the registry, or the way to it, did
    │   ├── RegistryUnreachable   registry_unreachable  no such name, no route, refused, reset
    │   │   └── ConnectionBroken  registry_unreachable  it was there and broke off
    │   ├── TlsFailed             tls_failed            certificate or handshake
    │   ├── AddressRefused        address_refused       link-local, metadata, or a redirect we do not follow
    │   ├── PullTimeout           timeout               one of the time limits
    │   ├── Unauthorized          unauthorized          credentials missing, wrong or without the right
    │   ├── NotFound              not_found             (either of the next two)
    │   │   ├── RepositoryUnknown not_found
    │   │   └── ManifestUnknown   not_found             no such tag, digest or blob
    │   ├── RateLimited           rate_limited          429 for longer than we wait
    │   └── RegistryError         registry_error        any other answer that is not the protocol's
    │       └── RegistryFailing   registry_error        5xx, also when asked again
    ├── ContentFault                                    what was delivered is not what was asked for
    │   ├── DigestMismatch        digest_mismatch
    │   ├── SizeMismatch          size_mismatch         fewer or more bytes than announced
    │   │   └── Truncated         size_mismatch         fewer: the transfer broke
    │   ├── TooLarge              too_large
    │   ├── InvalidManifest       invalid_manifest
    │   ├── NoWasmLayer           no_wasm_layer
    │   ├── AmbiguousLayer        ambiguous_layer       several modules, nothing says which
    │   ├── NoPlatform            no_platform           an index without an entry for wasm
    │   ├── NotWasm               not_wasm              the bytes do not begin as a module does
    │   └── InvalidArchive        invalid_archive       an archive, or a layer that is one, not as it must be
    ├── TrustFault                                      who made it is not whom the policy asks for
    │   ├── InvalidPolicy         invalid_policy        the policy file, or a key it names
    │   ├── ImageDenied           image_denied          the policy says deny
    │   ├── SignatureMissing      signature_missing     nobody signed it
    │   ├── SignatureInvalid      signature_invalid     a signature that was tampered with, or is for other bytes
    │   ├── SignatureUntrusted    signature_untrusted   signed, but with no key that the policy names
    │   └── SignatureExpired      signature_expired     signed with a key, or at a time, that no longer counts
    └── StoreFault                                      the store on disk
        ├── DiskFull              disk_full
        ├── StoreReadOnly         store_read_only
        ├── StoreDamaged          store_damaged
        ├── NotInStore            not_in_store          asked for with the policy Never, or not there
        ├── StoreInUse            store_in_use          a task needs what was to be removed
        ├── StoreBusy             store_busy            a node is just taking it over
        └── StoreFailed           store_failed          any other error of the file system

``str(error)`` is one line that says what happened and what to do next. No secret is ever part of it.
"""

# ruff: noqa: N818 - the names say what happened; the base class says that it is an error

from typing import ClassVar


class OciError(Exception):
    """Anything this package reports; ``reason`` is stable across versions, the message is not.

    ``transient`` says whether the same request may succeed when it is repeated without a change.
    """

    reason: ClassVar[str] = "oci_error"
    transient: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        """Keep the message as one line of bounded length: parts of it may come from a registry."""
        line = "".join(c if c.isprintable() else " " for c in message)
        super().__init__(" ".join(line.split())[:600])


class InvalidReference(OciError):
    """Text that is not an image reference; the message names the part that is wrong."""

    reason = "invalid_reference"


class InvalidDigest(OciError):
    """Text that is not a digest in the form ``sha256:<64 hex digits>`` or ``sha512:<128 hex digits>``."""

    reason = "invalid_digest"


class InvalidCredentials(OciError):
    """A credentials file or a credential helper that cannot be read or used."""

    reason = "invalid_credentials"


class PullCancelled(OciError):
    """The caller's ``cancelled`` said yes; nothing incomplete is left in the store."""

    reason = "cancelled"


class RegistryFault(OciError):
    """Something the registry, or the network on the way to it, did."""


class RegistryUnreachable(RegistryFault):
    """No connection could be made, or it broke."""

    reason = "registry_unreachable"
    transient = True


class ConnectionBroken(RegistryUnreachable):
    """A connection was made and ended before the answer was whole."""


class TlsFailed(RegistryFault):
    """The registry's certificate or the TLS handshake was not acceptable."""

    reason = "tls_failed"


class AddressRefused(RegistryFault):
    """A link-local or metadata address, a redirect to loopback, or a redirect from https to http."""

    reason = "address_refused"


class PullTimeout(RegistryFault):
    """A connect, read or total time limit was reached."""

    reason = "timeout"
    transient = True


class Unauthorized(RegistryFault):
    """The registry wants credentials, or refuses those it was given."""

    reason = "unauthorized"


class NotFound(RegistryFault):
    """The registry answers and has no such thing."""

    reason = "not_found"


class RepositoryUnknown(NotFound):
    """The registry has no such repository."""


class ManifestUnknown(NotFound):
    """The repository has no such tag, manifest or blob."""


class RateLimited(RegistryFault):
    """The registry asks to wait for longer than this pull may take."""

    reason = "rate_limited"
    transient = True


class RegistryError(RegistryFault):
    """Any other answer the distribution protocol does not provide for."""

    reason = "registry_error"


class RegistryFailing(RegistryError):
    """The registry reports a fault of its own (5xx), also when asked again."""

    transient = True


class ContentFault(OciError):
    """What was delivered is not what was asked for, or nothing that can be run."""


class DigestMismatch(ContentFault):
    """Bytes whose digest is not the one they were asked for by."""

    reason = "digest_mismatch"


class SizeMismatch(ContentFault):
    """Fewer or more bytes than the descriptor announces."""

    reason = "size_mismatch"


class Truncated(SizeMismatch):
    """Fewer bytes than announced: the transfer broke and may succeed when it is repeated."""

    transient = True


class TooLarge(ContentFault):
    """A manifest or module above the configured limit."""

    reason = "too_large"


class InvalidManifest(ContentFault):
    """A manifest that is not JSON, not of a known kind, or contradicts itself."""

    reason = "invalid_manifest"


class NoWasmLayer(ContentFault):
    """An artifact without a WebAssembly module in a form that is understood."""

    reason = "no_wasm_layer"


class AmbiguousLayer(ContentFault):
    """An artifact with several WebAssembly modules and nothing that says which one to run."""

    reason = "ambiguous_layer"


class NoPlatform(ContentFault):
    """An index without an entry for a WebAssembly platform."""

    reason = "no_platform"


class NotWasm(ContentFault):
    """A layer whose bytes do not begin as a WebAssembly module or component does."""

    reason = "not_wasm"


class InvalidArchive(ContentFault):
    """An archive of images, or a layer that is a tar archive, that is damaged or not of a form that is understood."""

    reason = "invalid_archive"


class TrustFault(OciError):
    """The image is not one that the signature policy lets run."""


class InvalidPolicy(TrustFault):
    """The policy file, or a key that it names, cannot be read or understood: nothing is run on a guess."""

    reason = "invalid_policy"


class ImageDenied(TrustFault):
    """The policy denies this repository."""

    reason = "image_denied"


class SignatureMissing(TrustFault):
    """The policy requires a signature and there is none, neither in the store nor in the registry."""

    reason = "signature_missing"


class SignatureInvalid(TrustFault):
    """A signature that does not fit what it signs: one of the two was changed."""

    reason = "signature_invalid"


class SignatureUntrusted(TrustFault):
    """There are signatures, and none is by a key that the policy requires."""

    reason = "signature_untrusted"


class SignatureExpired(TrustFault):
    """A signature by a required key or certificate that is no longer, or not yet, valid."""

    reason = "signature_expired"


class StoreFault(OciError):
    """Something the store on disk could not do."""


class DiskFull(StoreFault):
    """No space, or no quota, left for the store."""

    reason = "disk_full"
    transient = True


class StoreReadOnly(StoreFault):
    """The store's directory may not be written."""

    reason = "store_read_only"


class StoreDamaged(StoreFault):
    """A file of the store does not have the content its name promises, or is no valid layout."""

    reason = "store_damaged"


class NotInStore(StoreFault):
    """The store does not hold what was asked for and may not fetch it."""

    reason = "not_in_store"


class StoreInUse(StoreFault):
    """What was to be removed is needed by a task, or by another process."""

    reason = "store_in_use"


class StoreBusy(StoreFault):
    """Nothing may be removed just now: a node is starting and has not said what it needs."""

    reason = "store_busy"
    transient = True


class StoreFailed(StoreFault):
    """Any other error of the file system under the store."""

    reason = "store_failed"
