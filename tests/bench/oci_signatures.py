"""What it costs to verify a signature that is in the store, by kind of key; signatures made by the real cosign."""

import sys
import time
from collections.abc import Iterator
from statistics import median

from proplet.oci.layout import OciLayout
from proplet.oci.policy import load_policy
from proplet.oci.reference import Reference
from proplet.oci.signatures import check
from tests.bench.oci_transfers import output
from tests.bench.rows import Plan, Row, number, row
from tests.support.signatures import DIGEST, FORMS, KEYS, NAME, VECTORS, parts, store

_LOAD = """
import sys
import time
began = time.perf_counter()
from proplet.oci.cosign import read_public_key
from pathlib import Path
read_public_key(Path({key!r}).read_bytes(), "")
print(time.perf_counter() - began)
"""


def signatures(plan: Plan) -> Iterator[Row]:
    """With a policy of one key, offline: the index and the signature read, its digests and itself compared."""
    for form in FORMS:
        took: dict[str, float] = {}
        for key in KEYS:
            directory = plan.scratch / f"signed-{key}-{form}"
            layout = OciLayout(directory / "store")
            store(layout, parts(key, form), tagged=form == "simple")
            file = directory / "policy.toml"
            file.write_text(
                f'[keys.{key}]\nfile = "{VECTORS / key / "key.pub"}"\n[repositories."*"]\nrule = "require"\n'
            )
            policy, reference = load_policy(file), Reference.parse(f"{NAME}:1")
            each = []
            for _ in range(plan.pick(100, 20)):
                began = time.perf_counter()
                assert check(reference, DIGEST, layout, policy, None).signer == key
                each.append(1000 * (time.perf_counter() - began))
            took[key] = median(each)
        notes = [", ".join(f"{key} {number(value)}" for key, value in took.items()) + " ms, medians"]
        yield row(f"verification in the store, slowest key, {form} form", max(took.values()), "ms", notes=notes, **took)
    loads = [
        float(output(sys.executable, "-c", _LOAD.format(key=str(VECTORS / "p256" / "key.pub"))))
        for _ in range(plan.pick(7, 3))
    ]
    notes = ["cryptography loaded and a key read, in a process that had none; not in the agent"]
    yield row("before the first verification of a process", 1000 * median(loads), "ms", notes=notes)
