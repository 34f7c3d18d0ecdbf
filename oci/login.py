"""Answering a registry's challenge: Basic, tokens of the distribution project's token service, identity tokens.

oras-py speaks Basic and the token service's GET; the grant for the identity tokens that ``docker login`` keeps (the
distribution project's "Token Authentication, OAuth2") is spoken here. Sources: distribution specification 1.1, RFC 6749
section 6, RFC 6750. Which protocol is chosen by the challenge and only then: oras' token backend makes a URL of a Basic
realm and hangs.
"""

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proplet.oci.auth import Credentials, find_credentials
from proplet.oci.errors import AddressRefused, OciError, RegistryError, RegistryFailing, Unauthorized
from proplet.oci.reference import Reference
from proplet.oci.settings import RegistrySettings

if TYPE_CHECKING:
    import requests

    from proplet.oci.transport import GuardedSession

_QUOTED = re.compile(r'"[^"]*"')
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s+[^\s=,]|\s*(?:,|$))")
_BUSY = {429, 500, 502, 503, 504}
_MAX_CHALLENGE = 4096  # oras looks for its parameters in time that grows with the square of the length
_CLIENT_ID = "proplet"  # RFC 6749 wants a name; token services of registries only log it


def challenges(header: str) -> dict[str, str]:
    """The challenges of a WWW-Authenticate header by scheme in lower case: some registries offer several.

    RFC 9110, 11.6.1: both challenges and the parameters of one are separated by commas.
    """
    # Commas in quotes separate nothing, so the words are looked for where all that is quoted is struck out.
    struck = _QUOTED.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', header)
    starts = list(_SCHEME.finditer(struck))
    ends = [found.start() for found in starts[1:]]
    found: dict[str, str] = {}
    for start, end in zip(starts, [*ends, len(header)], strict=False):
        found.setdefault(start[1].lower(), header[start.start(1) : end].strip(" ,"))
    return found


class Login:
    """Who we are to one registry, and the header that says so; credentials are looked up when they are asked for.

    ``plain``: the registry is spoken to without TLS. ``actions``: what is asked for where the challenge asks for
    nothing or only to pull, as in ``pull,push``.
    """

    def __init__(
        self,
        reference: Reference,
        settings: RegistrySettings,
        session: "GuardedSession",
        *,
        plain: bool,
        actions: str = "pull",
    ) -> None:
        """Know nothing yet."""
        self._reference = reference
        self._settings = settings
        self._session = session
        self._plain = plain
        self._actions = actions
        self._credentials: Credentials | None = None
        self._accepted = False
        self.headers: dict[str, str] = {}

    @property
    def identity(self) -> str:
        """Whom we claim to be, for messages."""
        found = self._credentials
        return f"{found.name} (from {found.source})" if found else "anonymous access"

    @property
    def advice(self) -> str:
        """What to do when that is refused."""
        if self._credentials is None:
            return "set credentials for it, or check the name"
        if self._accepted:
            return "the credentials are right, ask for the right to this repository or check its name"
        found = self._credentials
        return "check user name and password" if found.identity_token is found.bearer is None else "log in again"

    def answer(self, response: "requests.Response") -> bool:
        """Make ``headers`` answer the challenge of a refused request; False when there is nothing new to say.

        Raises:
            InvalidCredentials: a file or helper with credentials cannot be used.
            Unauthorized: the token service refuses them.
            AddressRefused: the challenge wants passwords sent where they are not safe.
            RegistryError: a challenge or an answer that is not the protocol's.
        """
        header = response.headers.get("WWW-Authenticate", "")
        if len(header) > _MAX_CHALLENGE:
            raise RegistryError(
                f"registry {self._reference.registry} asks for authentication in {len(header)} characters, more than "
                f"{_MAX_CHALLENGE}: check its configuration"
            )
        offered = challenges(header)
        scheme = next((known for known in ("bearer", "basic") if known in offered), None)
        if scheme is None:
            kinds = ", ".join(offered)[:60]
            raise RegistryError(
                f"registry {self._reference.registry} asks for authentication of an unknown kind {kinds!r}"
            )
        # Looked up only now: most pulls of public modules need no helper to be run and no file to be right.
        self._credentials = find_credentials(self._reference.registry, self._settings)
        found = self._credentials
        if found is not None and found.bearer is not None:
            return self._say(f"Bearer {found.bearer}")
        if scheme == "basic":
            if found is not None and found.identity_token is not None:
                raise Unauthorized(
                    f"registry {self._reference.registry} wants user name and password, and {found.source} has an "
                    "identity token for it: set both"
                )
            return found is not None and self._say(self._basic(response, found))
        token = self._token(offered["bearer"])
        self.headers = {}
        self._accepted = True
        return self._say(token)

    def _say(self, authorization: str) -> bool:
        changed = self.headers.get("Authorization") != authorization
        self.headers = {"Authorization": authorization}
        return changed

    def _basic(self, response: "requests.Response", found: Credentials) -> str:
        import oras.auth

        backend = oras.auth.get_auth_backend("basic", self._session)  # type: ignore[no-untyped-call]
        backend.set_basic_auth(found.username, found.password)
        headers, _ = backend.authenticate_request(response, {})
        return str(headers["Authorization"])

    def _token(self, challenge: str) -> str:
        import oras.auth
        import oras.auth.utils

        asked = oras.auth.utils.parse_auth_header(challenge)
        self._check_realm(asked.realm or "")
        repository = f"repository:{self._reference.repository}"
        if not asked.scope or asked.scope == f"{repository}:pull":
            asked.scope = f"{repository}:{self._actions}"
        found = self._credentials
        registry = self._reference.registry
        try:
            if found is not None and found.identity_token is not None:
                token = self._granted(asked, found.identity_token)
            else:
                backend = oras.auth.get_auth_backend(  # type: ignore[no-untyped-call]
                    "token", self._session, self._plain
                )
                backend.prefix = "http" if self._plain else "https"
                if found is not None:
                    backend.set_basic_auth(found.username, found.password)
                token = backend.request_token(asked) if found else backend.request_anonymous_token(asked)
        except (AttributeError, TypeError, KeyError, RecursionError) as error:
            # oras trusts the document with the token to be one.
            raise RegistryError(f"the token service of registry {registry} answers no token") from error
        if not token:
            raise self._no_token(self._session.last_status)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"the token service of registry {registry} answers no token")
        return f"Bearer {token}"

    def _granted(self, asked: "oras.auth.utils.authHeader", identity_token: str) -> object:  # type: ignore[name-defined]  # noqa: F821
        """The token for an identity token: the grant ``refresh_token``, sent as a form."""
        form = {
            "grant_type": "refresh_token",
            "service": asked.service or self._reference.registry,
            "client_id": _CLIENT_ID,
            "scope": asked.scope,
            "refresh_token": identity_token,
        }
        response = self._session.post(
            asked.realm, data=form, headers={"Accept": "application/json"}, allow_redirects=False
        )
        if response.is_redirect:  # 307 and 308 would take the identity token along, in the body, to any host
            raise RegistryError(
                f"the token service of registry {self._reference.registry} redirects a request that holds a secret: "
                "not followed; check its configuration"
            )
        if response.status_code != 200:
            return None
        document = response.json()
        return document.get("access_token") or document.get("token")

    def _no_token(self, status: int) -> OciError:
        registry = self._reference.registry
        if status in _BUSY:
            return RegistryFailing(f"the token service of registry {registry} answers HTTP {status}: try again later")
        if status == 200:
            return RegistryError(f"the token service of registry {registry} answers no token")
        return Unauthorized(
            f"the token service of registry {registry} refuses {self.identity} for "
            f"{self._reference.repository}: {self.advice}"
        )

    def _check_realm(self, realm: str) -> None:
        """Passwords go to the token service the registry names: not in the clear when the registry itself is not."""
        url = urlsplit(realm)
        registry = self._reference.registry
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise RegistryError(f"registry {registry} names no URL for its tokens: check its configuration")
        if url.scheme == "http" and not self._plain:
            raise AddressRefused(f"registry {registry} wants passwords sent to {url.hostname} over plain http")
