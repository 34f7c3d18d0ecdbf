"""The API server that the tests get is a real one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubernetes import ApiError, ApiServer, KubectlError, open_api_server
from tests.support.kubernetes_programs import SCRIPT

WIDGETS = "/apis/tests.proplet.io/v1/widgets"
DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.tests.proplet.io"},
    "spec": {
        "group": "tests.proplet.io",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"size": {"type": "integer", "minimum": 1}},
                            },
                            "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
                        },
                    }
                },
            }
        ],
    },
}


def note(name: str, text: str = "") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": text}}


def test_kubectl_and_the_server_are_of_the_version_that_is_pinned(api_server: ApiServer) -> None:
    versions = json.loads(api_server.kubectl("version", "--output=json"))
    pinned = Path(__file__).parents[1] / "kubernetes_servers/go.mod"
    assert f"k8s.io/kubernetes {versions['serverVersion']['gitVersion']} " in pinned.read_text()
    assert versions["clientVersion"]["gitVersion"] == versions["serverVersion"]["gitVersion"]


def test_a_custom_resource_is_checked_against_its_schema_and_kept(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("create", "-f", "-", input=json.dumps(DEFINITION))
    try:
        api_server.kubectl("wait", "--for=condition=Established", "crd/widgets.tests.proplet.io", "--timeout=30s")
        widget = {"apiVersion": "tests.proplet.io/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 0}}
        with pytest.raises(KubectlError, match="should be greater than or equal to 1"):
            api_server.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(widget))
        widget["spec"] = {"size": 2}
        api_server.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(widget))
        path = f"/apis/tests.proplet.io/v1/namespaces/{namespace}/widgets/w"
        assert api_server.call("GET", path)["spec"] == {"size": 2}
    finally:
        api_server.kubectl("delete", "crd", "widgets.tests.proplet.io")


def test_a_watch_tells_what_has_happened_since_a_version(api_server: ApiServer, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    version = api_server.call("GET", path)["metadata"]["resourceVersion"]
    api_server.call("POST", path, note("a"))
    api_server.call("DELETE", f"{path}/a")
    events = api_server.watch(path, version)
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in (next(events), next(events))] == [
        ("ADDED", "a"),
        ("DELETED", "a"),
    ]
    events.close()


def test_a_removed_namespace_is_gone_with_what_finalizers_held_in_it(api_server: ApiServer) -> None:
    api_server.create_namespace("to-be-removed")
    path = "/api/v1/namespaces/to-be-removed/configmaps"
    held = note("held")
    held["metadata"]["finalizers"] = ["tests.proplet.io/held"]
    api_server.call("POST", path, held)
    api_server.remove_namespace("to-be-removed")
    with pytest.raises(ApiError) as gone:
        api_server.call("GET", "/api/v1/namespaces/to-be-removed")
    assert gone.value.status == 404
    api_server.create_namespace("to-be-removed")
    assert api_server.call("GET", path)["items"] == []
    api_server.remove_namespace("to-be-removed")


def test_nobody_may_do_what_no_role_allows(api_server: ApiServer, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    token = api_server.service_account_token(namespace, "reader")
    with pytest.raises(ApiError) as refused:
        api_server.call("GET", path, token=token)
    assert refused.value.status == 403
    with pytest.raises(ApiError) as unknown:
        api_server.call("GET", path, token="of nobody")
    assert unknown.value.status == 401
    user = api_server.user_kubeconfig("ann", "readers")
    with pytest.raises(KubectlError, match='User "ann" cannot list'):
        api_server.kubectl("get", "configmaps", "-n", namespace, kubeconfig=user)

    api_server.kubectl("create", "role", "reading", "-n", namespace, "--verb=get,list", "--resource=configmaps")
    api_server.kubectl(
        *("create", "rolebinding", "reading", "-n", namespace, "--role=reading"),
        *(f"--serviceaccount={namespace}:reader", "--group=readers"),
    )
    assert api_server.call("GET", path, token=token)["items"] == []
    api_server.kubectl("get", "configmaps", "-n", namespace, kubeconfig=user)
    account = api_server.token_kubeconfig(token, namespace)
    with pytest.raises(KubectlError, match="cannot create"):
        api_server.kubectl("create", "configmap", "a", kubeconfig=account)


def test_what_was_answered_survives_a_kill_and_history_does_not_survive_a_compaction(
    private_api_server: ApiServer,
) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    created = private_api_server.call("POST", path, note("kept", "text"))
    private_api_server.kill()
    with pytest.raises(OSError, match="refused"):
        private_api_server.call("GET", path)
    private_api_server.start()
    assert private_api_server.call("GET", f"{path}/kept") == created

    version = private_api_server.call("GET", path)["metadata"]["resourceVersion"]
    private_api_server.call("PUT", f"{path}/kept", note("kept", "changed"))
    private_api_server.compact()
    # Where history has gone, the watch itself is accepted and its first event tells.
    try:
        told = next(private_api_server.watch(path, version))["object"]
    except ApiError as refused:
        told = refused.document
    assert (told["code"], told["reason"]) == (410, "Expired")
    assert private_api_server.call("GET", f"{path}/kept")["data"] == {"text": "changed"}


def test_a_paused_server_answers_when_it_is_resumed(private_api_server: ApiServer) -> None:
    private_api_server.pause()
    with pytest.raises(KubectlError, match=r"(?i)timeout|deadline"):
        private_api_server.kubectl("get", "--raw=/readyz", "--request-timeout=1s")
    private_api_server.resume()
    assert private_api_server.kubectl("get", "--raw=/readyz") == "ok"


@pytest.mark.kubernetes
def test_a_server_takes_further_arguments_and_leaves_nothing_behind() -> None:
    with open_api_server(["--anonymous-auth=false"]) as server:
        with pytest.raises(ApiError) as refused:
            server.call("GET", "/version", token="")
        assert refused.value.status == 401
        directory = server.kubeconfig.parent
    assert not directory.exists()
    with pytest.raises(OSError, match="refused"):
        server.call("GET", "/version")


@pytest.mark.source
def test_where_nothing_is_built_the_script_says_how_in_one_line(tmp_path: Path) -> None:
    empty = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    found = subprocess.run([SCRIPT, "find"], env=empty, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1)
    assert "packaging/kubernetes-servers.sh" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.source
def test_a_directory_that_is_given_is_taken_when_it_has_all_programs(tmp_path: Path) -> None:
    given = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KUBEBUILDER_ASSETS": str(tmp_path)}
    for program in ("kube-apiserver", "etcd"):
        (tmp_path / program).touch(mode=0o755)
    found = subprocess.run([SCRIPT], env=given, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert "kubectl" in found.stderr
    (tmp_path / "kubectl").touch(mode=0o755)
    found = subprocess.run([SCRIPT], env=given, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, f"{tmp_path}\n")
