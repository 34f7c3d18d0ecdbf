"""The Secrets that Proplets of type `k8s` name, read as far as they may be named: their keys, never a value."""

from collections.abc import Sequence
from dataclasses import dataclass

from proplet.manager.deployments import Secrets
from proplet.manager.kubernetes_api import KubernetesApi
from proplet.manager.kubernetes_secrets import SecretError, describe_secret
from proplet.manager.model import Proplet
from proplet.manager.pod_grants import (
    IDENTITIES_LINE,
    TLS_LINE,
    Grants,
    Refusal,
    given_by_label,
    not_given,
    not_seen,
    secrets_named,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found: keys, or why there is to be no Deployment; and the texts of what cannot be read now."""

    secrets: Secrets
    refusal: Refusal | None = None
    missing: tuple[str, ...] = ()


class PodSecrets:
    """Reads what Secrets have, for Proplets that may name them."""

    def __init__(self, api: KubernetesApi, grants: Grants) -> None:
        self._api = api
        self._grants = grants
        # By the Proplet's uid: the Secrets it was found to be given, and at which generation of it. One that was given
        # and cannot be read is not taken away, and of one without keys to read the label is not asked for every time.
        self._given: dict[str, dict[str, int]] = {}

    async def read(self, proplet: Proplet) -> Reading:
        """Return what the Secrets of a Proplet have, and whether it may name them. Raises StoreUnavailableError."""
        refusal = self._grants.account_refusal(proplet.spec)
        keys, missing = dict[str, Sequence[str] | None](), list[str]()
        for name, lines in secrets_named(proplet.spec).items():
            if refusal is not None:
                break
            wants_keys = IDENTITIES_LINE in lines or TLS_LINE in lines
            if not wants_keys and self._known(proplet, name):
                continue
            try:
                keys[name] = await self._keys(proplet, name, lines[0])
            except SecretError as error:
                if self._grants.allow_by_name(name) or name in self._given.get(proplet.meta.uid, ()):
                    keys[name] = None
                    missing.append(str(error))
                else:
                    refusal = not_seen(lines[0], str(error))
            except _NotGivenError as error:
                refusal = error.refusal
        if refusal is not None:
            return Reading(Secrets(None, None), refusal)
        names = (str((proplet.spec.k8s.get(f) or {}).get("name", "")) for f in ("identitiesSecretRef", "tlsSecretRef"))
        return Reading(Secrets(*(keys.get(name, ()) for name in names)), missing=tuple(missing))

    def forget(self, uid: str) -> None:
        """The Proplet with this uid is gone."""
        self._given.pop(uid, None)

    def _known(self, proplet: Proplet, name: str) -> bool:
        given = self._given.get(proplet.meta.uid, {})
        return self._grants.allow_by_name(name) or given.get(name) == proplet.meta.generation

    async def _keys(self, proplet: Proplet, name: str, line: str) -> Sequence[str]:
        secret = await describe_secret(self._api, proplet.meta.namespace, name)
        given = self._given.setdefault(proplet.meta.uid, {})
        if not self._grants.allow_by_name(name) and not given_by_label(secret.labels):
            given.pop(name, None)
            raise _NotGivenError(not_given(proplet, line, name))
        given[name] = proplet.meta.generation
        return secret.keys


class _NotGivenError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
