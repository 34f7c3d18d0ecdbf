"""What Proplets of type `k8s` may name: the service accounts of their pods, and the Secrets these can read. Pure.

A pod reads every Secret that it names, and who writes a Proplet chooses the pod's image. Without a bound, whoever may
create Proplets would read every Secret of the namespace. So a Secret is given to proplets by who owns it, with a label,
or by who installs the manager, by its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from proplet.manager.model import Proplet, PropletSpec

SECRET_LABEL: Final = "propeller.absmach.fr/for-proplets"  # noqa: S105 - the name of a label
GIVEN: Final = "true"
IDENTITIES_LINE: Final = "spec.k8s.identitiesSecretRef.name"
TLS_LINE: Final = "spec.k8s.tlsSecretRef.name"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a Proplet gets no Deployment: the reason of its condition, and a message with the line and what to do."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Grants:
    """What may be named, as patterns (`*`, `?`); Secrets with the label may always be."""

    service_accounts: tuple[str, ...] = ("default",)
    secrets: tuple[str, ...] = ()

    def account_refusal(self, spec: PropletSpec) -> Refusal | None:
        """Return why a Proplet may not name its service account, None if it may, or names none."""
        account = str(spec.k8s.get("serviceAccountName") or "")
        if not account or _matches(account, self.service_accounts):
            return None
        wider = ",".join((*self.service_accounts, account))
        return Refusal(
            "ServiceAccountNotAllowed",
            f"spec.k8s.serviceAccountName: the service account {account} is not for proplets; take the line out, or "
            f"start the manager with --proplet-service-accounts={wider} (proplet_service_accounts in [kubernetes])",
        )

    def allow_by_name(self, secret: str) -> bool:
        """Whether a Secret may be named without having the label."""
        return _matches(secret, self.secrets)


def given_by_label(labels: Mapping[str, str]) -> bool:
    """Whether a Secret with these labels is given to proplets."""
    return labels.get(SECRET_LABEL) == GIVEN


def not_given(proplet: Proplet, line: str, secret: str) -> Refusal:
    """A Secret that has no label, and may not be named without."""
    label = f"kubectl -n {proplet.meta.namespace} label secret {secret} {SECRET_LABEL}={GIVEN}"
    return Refusal(
        "SecretNotAllowed",
        f"{line}: the Secret {secret} is not for proplets; if it is to be, {label}, "
        f"or start the manager with --proplet-secrets={secret} (proplet_secrets in [kubernetes])",
    )


def not_seen(line: str, problem: str) -> Refusal:
    """A Secret whose label cannot be read."""
    return Refusal(
        "SecretMissing",
        f"{line}: {problem}; it needs the label {SECRET_LABEL}={GIVEN}, or a name in the manager's --proplet-secrets",
    )


def secrets_named(spec: PropletSpec) -> dict[str, list[str]]:
    """Return the Secrets that a Proplet's pods use, each with the lines that name it, of the connection first."""
    connection, k8s = spec.connection, spec.k8s
    key = "apiKeySecretRef" if connection.get("apiKeySecretRef") else "clientKeySecretRef"
    lines = [
        (f"spec.connectionConfig.{key}.name", (connection.get(key) or {}).get("name")),
        (IDENTITIES_LINE, (k8s.get("identitiesSecretRef") or {}).get("name")),
        (TLS_LINE, (k8s.get("tlsSecretRef") or {}).get("name")),
        *((f"spec.k8s.imagePullSecrets[{i}]", name) for i, name in enumerate(k8s.get("imagePullSecrets") or ())),
    ]
    found = dict[str, list[str]]()
    for line, name in lines:
        if name:
            found.setdefault(str(name), []).append(line)
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
