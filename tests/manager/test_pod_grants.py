"""What a Proplet's pods name, and which of it may be named."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from proplet.manager.deployments import Secrets, deployment, plan
from proplet.manager.pod_grants import SECRET_LABEL, Grants, given_by_label, secrets_named
from tests.manager.test_deployments import API_VERSION, CONNECTION, proplet

NO_KEY = {name: value for name, value in CONNECTION.items() if name != "clientKeySecretRef"}
words = st.text("abc", min_size=1, max_size=3)
names = st.none() | st.text("abc-.", min_size=1, max_size=8)


@given(
    tls=names,
    ids=names,
    pulls=st.lists(st.text("abc", min_size=1), max_size=3),
    key=st.sampled_from(["clientKey", "apiKey"]),
)
def test_no_pod_has_a_secret_that_is_not_asked_about(tls: str, ids: str, pulls: list[str], key: str) -> None:
    asked = proplet(
        replicas=2, imagePullSecrets=pulls, tlsSecretRef={"name": tls or ""}, identitiesSecretRef={"name": ids or ""}
    )
    connection = {**NO_KEY, f"{key}SecretRef": {"name": "keys", "key": "one"}}
    asked = replace(asked, spec=replace(asked.spec, connection=connection))
    named = set(secrets_named(asked.spec))
    found = Secrets(("one", "two"), ("ca.crt",))
    for replica, identity in enumerate(plan(asked, found).identities):
        pod = deployment(asked, replica, identity, found, API_VERSION)["spec"]["template"]["spec"]
        used = {entry["name"] for entry in pod.get("imagePullSecrets", ())}
        used |= {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        sources = [variable.get("valueFrom") for variable in pod["containers"][0]["env"]]
        used |= {source["secretKeyRef"]["name"] for source in sources if source}
        assert used <= named


def test_the_lines_of_a_secret_that_is_named_twice_are_all_there() -> None:
    asked = proplet(identitiesSecretRef={"name": "keys"}, imagePullSecrets=["pull", "keys"])
    assert secrets_named(asked.spec) == {
        "keys": [
            "spec.connectionConfig.clientKeySecretRef.name",
            "spec.k8s.identitiesSecretRef.name",
            "spec.k8s.imagePullSecrets[1]",
        ],
        "pull": ["spec.k8s.imagePullSecrets[0]"],
    }


def test_by_default_only_the_account_that_every_pod_has_and_secrets_with_the_label_may_be_named() -> None:
    grants = Grants()
    assert grants.account_refusal(proplet().spec) is None
    assert grants.account_refusal(proplet(serviceAccountName="default").spec) is None
    assert grants.account_refusal(proplet(serviceAccountName="default2").spec) is not None
    assert not grants.allow_by_name("propeller-mqtt")
    assert given_by_label({SECRET_LABEL: "true"})
    assert not given_by_label({SECRET_LABEL: "false"})
    assert not given_by_label({})


def test_patterns_are_of_whole_names() -> None:
    grants = Grants(service_accounts=("farm-*",), secrets=("a?", "edge-*-tls"))
    assert grants.account_refusal(proplet(serviceAccountName="farm-1").spec) is None
    assert grants.account_refusal(proplet(serviceAccountName="old-farm-1").spec) is not None
    assert [grants.allow_by_name(n) for n in ("ab", "abc", "edge-1-tls", "edge-1-tls-old")] == [
        True,
        False,
        True,
        False,
    ]
