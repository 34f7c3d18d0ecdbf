"""A real Kubernetes API server with its etcd for tests, on free loopback ports, and kubectl.

The fixtures `api_server`, `namespace` and `private_api_server` are in ``tests/conftest.py``; a test that uses one is
marked `kubernetes`. ``packaging/kubernetes-servers.sh`` makes the programs.

It is the API server alone. No controller manager runs: an object that is deleted takes none of those that it owns with
it, a deleted namespace stays until somebody empties and finalizes it (`remove_namespace` does), a Deployment makes no
pods. The admission plugin `ServiceAccount` is off, so that a pod needs no account made for it.
"""

import json
import os
import signal
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.mqtt.certificates import make_certificates
from tests.support.kubernetes_programs import Server, kubernetes_programs
from tests.support.registry import free_port

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_DISCOVERY = "application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList"

_ANSWER_SECONDS = 30.0


class ApiError(OSError):
    """The API server refused: `status` is HTTP's, `document` its Status object. Other OSErrors: it was not reached."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(f"{status} {document.get('reason', '')}: {document.get('message', document)}")
        self.status = status
        self.document = document


class KubectlError(Exception):
    """kubectl ended with `code`; `stderr` is what it said."""

    def __init__(self, arguments: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)} ended with {code}: {stderr}")
        self.code = code
        self.stderr = stderr


class ApiServer:
    """One API server with its etcd: the same port, certificates and data through every restart.

    Start it from a thread that lives as long as it: the processes end with that.
    """

    def __init__(self, directory: Path, extra: Sequence[str] = ()) -> None:
        """Prepare one that keeps its files in `directory` (which must not exist) and gets the arguments `extra`."""
        self._programs = kubernetes_programs()
        self._directory = directory
        directory.mkdir(parents=True)
        self._certificates = make_certificates(directory / "certificates")
        accounts = directory / "accounts.key"
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", accounts)
        _openssl("pkey", "-in", accounts, "-pubout", "-out", accounts.with_suffix(".pub"))
        self.ca_file = self._certificates / "ca.pem"
        self.port, self._etcd_port, self._peer_port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.admin_token = "admin-secret"
        (directory / "tokens.csv").write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        self._configs = count(1)
        self.kubeconfig = self.token_kubeconfig(self.admin_token)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._etcd = self._server("etcd", self._etcd_arguments())
        self._api = self._server("kube-apiserver", [*self._api_arguments(), *extra])

    # Its life

    def start(self) -> None:
        """Start etcd and the API server, whichever does not run, and wait until it is ready."""
        self._etcd.start(lambda: bool(self._ask_etcd("range", {"key": "AA=="})))
        self._api.start(lambda: self._request("GET", "/readyz") == b"ok")

    def stop(self) -> None:
        """End both as a service manager would."""
        self._api.end(signal.SIGTERM)
        self._etcd.end(signal.SIGTERM)

    def kill(self) -> None:
        """End both as a power cut would. What has been answered is kept."""
        self._api.end(signal.SIGKILL)
        self._etcd.end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the API server from answering; its connections stay open, as through a network that has gone."""
        self._api.send(signal.SIGSTOP)

    def resume(self) -> None:
        self._api.send(signal.SIGCONT)

    def compact(self) -> None:
        """Forget all history: whoever resumes a watch from a version seen before gets 410 Gone.

        The API server is started again on the same etcd, because it would answer from its memory. Running watches end.
        """
        revision = self._ask_etcd("range", {"key": "AA=="})["header"]["revision"]
        self._ask_etcd("compaction", {"revision": revision, "physical": True})
        self._api.end(signal.SIGKILL)  # it would wait for whoever watches
        self.start()

    # Talking to it

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """The JSON that the API server answers; as the administrator, or with `token`. Raises ApiError from 400 on."""
        raw = self._request(method, path, body, token=token, content_type=content_type, accept=accept)
        answer: dict[str, Any] = json.loads(raw)
        return answer

    def page(self, path: str) -> str:
        """The text of what is no JSON, such as /metrics; as the administrator."""
        return self._request("GET", path).decode()

    def watch(self, path: str, version: str, *, seconds: int = 10, **parameters: str) -> Iterator[dict[str, Any]]:
        """The events of `path` since the resource version `version`; the server ends the watch after `seconds`."""
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds), **parameters}
        with self._open("GET", f"{path}?{urlencode(query)}", timeout=seconds + _ANSWER_SECONDS) as response:
            for line in response:
                yield json.loads(line)

    def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:  # noqa: A002
        """What kubectl prints; as the administrator, or with `kubeconfig`. Raises KubectlError when it fails."""
        done = subprocess.run(
            [self._programs / "kubectl", *arguments],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=os.environ
            | {
                "KUBECONFIG": str(kubeconfig or self.kubeconfig),
                "KUBECACHEDIR": str(self._directory / "kubectl"),
                "KUBERC": "off",
                "NO_PROXY": "127.0.0.1",
            },
        )
        if done.returncode != 0:
            raise KubectlError(arguments, done.returncode, done.stderr)
        return done.stdout

    # Namespaces

    def create_namespace(self, name: str) -> None:
        """Make a namespace, and wait for nothing: it can be used at once."""
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def remove_namespace(self, name: str) -> None:
        """Delete a namespace, if it is there, with all that is in it, whatever finalizers that has."""
        path = f"/api/v1/namespaces/{name}"
        if self._unless_gone("DELETE", path) is None:
            return
        for collection in self._namespaced(name):
            found = self._unless_gone("GET", f"{collection}?limit=1")
            if found is None or not found["items"]:
                continue
            self.call("DELETE", collection, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"})
            for left in self.call("GET", collection)["items"]:
                free = {"metadata": {"finalizers": None}}
                self._unless_gone("PATCH", f"{collection}/{left['metadata']['name']}", free, content_type=MERGE_PATCH)
        finalized = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}}
        self._unless_gone("PUT", f"{path}/finalize", finalized)

    def _namespaced(self, namespace: str) -> Iterator[str]:
        """The path of every collection of a namespace that can be emptied."""
        for root in ("/api", "/apis"):
            for group in self.call("GET", root, accept=_DISCOVERY)["items"]:
                served = group["versions"][0]  # the preferred one; the others show the same objects
                prefix = f"/api/{served['version']}"
                if root == "/apis":
                    prefix = f"/apis/{group['metadata']['name']}/{served['version']}"
                for resource in served["resources"]:
                    if resource["scope"] == "Namespaced" and {"list", "deletecollection"} <= set(resource["verbs"]):
                        yield f"{prefix}/namespaces/{namespace}/{resource['resource']}"

    def _unless_gone(self, method: str, path: str, body: Any = None, **how: Any) -> dict[str, Any] | None:
        try:
            return self.call(method, path, body, **how)
        except ApiError as refused:
            if refused.status != 404:
                raise
            return None

    # Identities

    def user_kubeconfig(self, name: str, *groups: str) -> Path:
        """A kubeconfig of the user `name` in `groups`, by a client certificate; RBAC gives it nothing yet."""
        certificate = self._directory / f"user-{next(self._configs)}.pem"
        key, request = certificate.with_suffix(".key"), certificate.with_suffix(".csr")
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
                 "-keyout", key, "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", self._certificates / "ca.key",
                 "-CAcreateserial", "-days", "2", "-out", certificate)  # fmt: skip
        return self._write_kubeconfig({"client-certificate": str(certificate), "client-key": str(key)})

    def token_kubeconfig(self, token: str, namespace: str = "default") -> Path:
        """A kubeconfig that shows `token`, whatever it is."""
        return self._write_kubeconfig({"token": token}, namespace)

    def service_account_token(self, namespace: str, name: str, seconds: int = 3600) -> str:
        """A token of a service account (made if there is none) that lasts `seconds`, 600 at least."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.call("POST", accounts, {"metadata": {"name": name}})
        except ApiError as refused:
            if refused.status != 409:
                raise
        wish = {"spec": {"expirationSeconds": seconds}}
        return str(self.call("POST", f"{accounts}/{name}/token", wish)["status"]["token"])

    def _write_kubeconfig(self, user: dict[str, str], namespace: str = "default") -> Path:
        file = self._directory / f"kubeconfig-{next(self._configs)}"
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "current-context": "test",
        }
        file.touch(mode=0o600)
        file.write_text(json.dumps(content, indent=1))  # JSON is YAML
        return file

    # Its processes

    def _etcd_arguments(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            f"--data-dir={self._directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # a killed process loses nothing by it
            "--log-level=warn",
        ]

    def _api_arguments(self) -> list[str]:
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--etcd-compaction-interval=0",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self._certificates / 'server.pem'}",
            f"--tls-private-key-file={self._certificates / 'server.key'}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            f"--service-account-issuer={self.url}",
            f"--service-account-key-file={self._directory / 'accounts.pub'}",
            f"--service-account-signing-key-file={self._directory / 'accounts.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
        ]

    def _server(self, program: str, arguments: Sequence[str]) -> Server:
        return Server(self._programs / program, arguments, self._directory / f"{program}.log")

    def _ask_etcd(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv/{what}"
        request = urllib.request.Request(url, data=json.dumps(question).encode(), method="POST")
        with self._opener.open(request, timeout=_ANSWER_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def _request(self, method: str, path: str, body: Any = None, **how: Any) -> bytes:
        with self._open(method, path, body, **how) as response:
            content: bytes = response.read()
            return content

    def _open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = _ANSWER_SECONDS,
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.admin_token if token is None else token}")
        request.add_header("Content-Type", content_type)
        request.add_header("Accept", accept)
        try:
            return self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as refused:
            with refused:
                raw = refused.read()
            try:
                document = json.loads(raw)
            except ValueError:
                document = {"message": raw.decode(errors="replace")}
            raise ApiError(refused.code, document) from None


@contextmanager
def open_api_server(extra: Sequence[str] = ()) -> Iterator[ApiServer]:
    """A running API server of its own with the arguments `extra`; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="kubernetes-") as directory:
        server = ApiServer(Path(directory) / "server", extra)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
