"""Makes the vectors beside this file with the real cosign, 2 and 3: ``python -m tests.oci.vectors.make V2 V3``.

V2 and V3 are the programs, for example from ``go install github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5`` and
``.../v3/cmd/cosign@v3.1.3``, with which the committed ones were made. Needs docker-registry and openssl; asks nobody on
the network. The private keys are new each time and are not kept.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.support.registry import ADDITION, running_registry

HERE = Path(__file__).parent
NAME = "ghcr.io/org/module"  # what cosign 2's signatures call the image
KEYS = {
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "p521": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "ed25519": ["-algorithm", "ED25519"],
    "rsa2048": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "rsa4096": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"],
}


def main(v2: str, v3: str) -> None:
    with tempfile.TemporaryDirectory() as temporary, running_registry(Path(temporary)) as registry:
        work = Path(temporary)
        environment = {"PATH": "/usr/bin:/bin", "HOME": temporary, "COSIGN_PASSWORD": "", "COSIGN_EXPERIMENTAL": "1"}

        def run(*command: str) -> None:
            subprocess.run(command, check=True, capture_output=True, env=environment, cwd=work)

        def get(path: str) -> bytes:
            request = urllib.request.Request(f"http://{registry.address}/v2/{path}")
            request.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
            request.add_header("Accept", "application/vnd.oci.image.index.v1+json, "
                               "application/vnd.oci.image.manifest.v1+json")  # fmt: skip
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                return bytes(answer.read())

        def keep(repository: str, reference: str, kind: str) -> None:
            directory = HERE / repository
            manifest = get(f"{repository}/manifests/{reference}")
            (directory / f"{kind}.manifest.json").write_bytes(manifest)
            document = json.loads(manifest)
            for part, descriptor in (("config", document["config"]), ("layer", document["layers"][0])):
                data = get(f"{repository}/blobs/{descriptor['digest']}")
                (directory / f"{kind}.{part}.json").write_bytes(data)

        for key, how in KEYS.items():
            (HERE / key).mkdir(exist_ok=True)
            run("openssl", "genpkey", *how, "-out", f"{key}.pem")
            run(v2, "import-key-pair", "--key", f"{key}.pem", "--output-key-prefix", key)
            (HERE / key / "key.pub").write_bytes((work / f"{key}.pub").read_bytes())
            digest = registry.push(key, "1", ADDITION)
            (HERE / "image.manifest.json").write_bytes(get(f"{key}/manifests/1"))
            image, tag = f"{registry.address}/{key}@{digest}", digest.replace(":", "-")
            sign = ["sign", "-y", "--key", f"{key}.key", "--tlog-upload=false", "--allow-http-registry"]
            run(v2, *sign, "--sign-container-identity", NAME, image)
            keep(key, f"{tag}.sig", "simple")
            run(v3, *sign, "--use-signing-config=false", image)
            keep(key, json.loads(get(f"{key}/manifests/{tag}"))["manifests"][0]["digest"], "bundle")
        # The same older form as a referrer.
        digest = registry.push("referrer", "1", ADDITION)
        (HERE / "referrer").mkdir(exist_ok=True)
        (HERE / "referrer" / "key.pub").write_bytes((work / "p256.pub").read_bytes())
        image = f"{registry.address}/referrer@{digest}"
        run(v2, "sign", "-y", "--key", "p256.key", "--tlog-upload=false", "--allow-http-registry",
            "--registry-referrers-mode=oci-1-1", "--sign-container-identity", NAME, image)  # fmt: skip
        index = json.loads(get(f"referrer/manifests/{digest.replace(':', '-')}"))
        keep("referrer", index["manifests"][0]["digest"], "simple")
        # The key of p256 as a certificate that is valid for long, and as one that has ended.
        for name, days in (("valid", "36500"), ("expired", "-1")):
            run("openssl", "req", "-new", "-key", "p256.pem", "-subj", "/CN=proplet vectors", "-out", "csr.pem")
            run("openssl", "x509", "-req", "-in", "csr.pem", "-key", "p256.pem", "-days", days, "-out", f"{name}.pem")
            (HERE / "p256" / f"{name}.pem").write_bytes((work / f"{name}.pem").read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
