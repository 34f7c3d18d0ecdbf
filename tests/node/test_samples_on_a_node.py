"""The sample manifests whose modules stand in them, on a standalone node: they give what they say."""

import pytest

from tests.manifests.test_manifest_corpus import SAMPLES
from tests.node.test_jobs_on_a_node import Hub, hub  # noqa: F401

pytestmark = [pytest.mark.mosquitto]

RESULTS = {
    "addition.yaml": {"addition": "42"},
    "broadcast.yaml": {"everywhere": "42"},
    "component.yaml": {"component": "42"},
    "limits.yaml": {"limited": "42"},
    "newer-spelling.yaml": {"newer-addition": "42"},
    "workflow.yaml": {"measure": "42", "evaluate": "3", "alarm": None},
    "job-parallel.yaml": {"together-main": "3", "together-again": "7"},
    "job-sequential.yaml": {"in-order-first": "3", "in-order-second": "7"},
    "job-configurable.yaml": {
        "calibrate": "1",
        "as-they-depend-left": "3",
        "as-they-depend-right": "7",
        "as-they-depend-both": "11",
    },
}
JOBS = ("together", "in-order", "as-they-depend")


def test_samples_complete_with_their_results(hub: Hub) -> None:  # noqa: F811
    for file in RESULTS:
        hub.done("apply", "-f", str(SAMPLES / file))
    for job in JOBS:
        hub.done("wait", "--timeout", "60s", f"job/{job}")
    for file, results in RESULTS.items():
        for name, result in results.items():
            hub.done("wait", "--for", "finished", "--timeout", "60s", f"task/{name}")
            status = hub.get("task", name)["status"]
            assert status["phase"] == ("skipped" if result is None else "completed"), (file, name, status)
            assert status.get("results") == result, (file, name, status)
    # The Task that is for a failure is none: nothing has failed.
    assert hub.get("job", "as-they-depend")["status"]["skippedCount"] == 1
