"""The corpus of manifests on a standalone node; tests/kubernetes has it judged by a Kubernetes API server."""

from pathlib import Path

import pytest

from proplet.manager.model import Kind
from tests.api.fakes import Node
from tests.api.http import Answer, send
from tests.manifests.test_manifest_corpus import ACCEPT, REFUSE, SAMPLES, reason

pytestmark = pytest.mark.anyio

TAKEN = [*ACCEPT, *sorted(SAMPLES.glob("*.yaml"))]


async def apply(node: Node, name: str, text: str) -> Answer:
    kind = "application/json" if name.endswith(".json") else "application/yaml"
    return await send(node.socket, "POST", "/api/v1/apply", text.encode(), {"Content-Type": kind})


def actions(answer: Answer) -> set[str]:
    assert answer.status == 200, answer.body
    return {item["action"] for item in answer.json["items"]}


@pytest.fixture
def text(file: Path) -> str:
    return file.read_text()


@pytest.mark.parametrize("file", TAKEN, ids=lambda file: file.name)
async def test_a_manifest_to_accept_is_applied_and_applied_again_without_a_change(
    node: Node, file: Path, text: str
) -> None:
    assert actions(await apply(node, file.name, text)) == {"created"}
    assert actions(await apply(node, file.name, text)) == {"unchanged"}


@pytest.mark.parametrize("file", REFUSE, ids=lambda file: file.name)
async def test_a_manifest_to_refuse_is_refused_for_its_reason_and_leaves_nothing(
    node: Node, file: Path, text: str
) -> None:
    answer = await apply(node, file.name, text)
    assert answer.status in (400, 422), answer.body
    assert reason(text) in answer.json["error"]
    for kind in Kind:
        assert not (await node.store.list(kind)).items
