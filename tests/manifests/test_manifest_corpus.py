"""The corpus of manifests: each file in accept/ and each sample is taken, each in refuse/ is refused for its reason."""

import dataclasses
from pathlib import Path

import pytest

from proplet.manager import manifest, rules
from proplet.manager.model import Meta, Task, TaskSpec

HERE = Path(__file__).parent
SAMPLES = Path(manifest.__file__).parent.parent / "crds" / "samples"
ACCEPT = sorted((HERE / "accept").iterdir())
REFUSE = sorted((HERE / "refuse").iterdir())
MARK = "refused"
# The one rule whose example is too large for a file.
TOO_MUCH_METADATA = Task(Meta("x"), TaskSpec("main", image_url="x", metadata={"x": "y" * 1024 * 1024}))


def reason(text: str) -> str:
    """What a file to refuse says of itself."""
    first = text.splitlines()[0]
    if first.startswith("{"):
        return first.split('"')[3]
    assert first.startswith(f"# {MARK}: ")
    return first.removeprefix(f"# {MARK}: ")


@pytest.mark.parametrize("path", ACCEPT, ids=lambda path: path.name)
def test_a_manifest_to_accept_is_taken_and_survives_being_written(path: Path) -> None:
    resources = manifest.parse_documents(path.read_text(), path.name)
    assert resources
    for resource in resources:
        again = manifest.from_manifest(manifest.to_manifest(resource))
        assert again == resource
        assert rules.check(resource) == []


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_sample_is_taken_and_asks_for_nothing_that_cannot_run(path: Path) -> None:
    for resource in manifest.parse_documents(path.read_text(), path.name):
        if isinstance(resource, Task):
            assert rules.unsupported(resource) is None


def test_the_sample_of_permissions_asks_to_write_where_it_is_said_to() -> None:
    (task,) = manifest.parse_documents((SAMPLES / "permissions.yaml").read_text())
    assert isinstance(task, Task)
    assert {asked.guest: asked.read_only for asked in task.spec.permissions.dirs} == {"/inbox": True, "/outbox": False}


@pytest.mark.parametrize("path", REFUSE, ids=lambda path: path.name)
def test_a_manifest_to_refuse_is_refused_for_its_reason(path: Path) -> None:
    text = path.read_text()
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.parse_documents(text, path.name)
    told = str(refused.value)
    assert reason(text) in told
    assert all(line.startswith(f"{path.name}: ") for line in told.splitlines())
    assert "SECRETVALUE" not in told


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    """So that the custom resource definitions, which are held to the same corpus, have every rule, too."""
    told = []
    for path in REFUSE:
        with pytest.raises(manifest.ManifestError) as refused:
            manifest.parse_documents(path.read_text())
        told += [(problem.path, problem.text) for problem in refused.value.problems]
    told += [(problem.path, problem.text) for problem in rules.check(TOO_MUCH_METADATA)]
    unbroken = [rule.name for rule in rules.RULES if (rule.path, rule.message) not in told]
    assert unbroken == []


def test_all_mistakes_of_all_documents_are_told_at_once() -> None:
    text = "\n---\n".join(
        f"""{{"apiVersion": "{manifest.API_VERSION}", "kind": "Task", "metadata": {{"name": "{name}"}},
        "spec": {{"priority": 200, "inputs": [{{}}], "runIf": "x"}}}}"""
        for name in ("one", "two")
    )
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.parse_documents(text, "both.yaml")
    assert str(refused.value).splitlines() == [
        f"both.yaml: Task '{name}': spec.inputs[0]: must be a number, a string, true or false, not an object"
        for name in ("one", "two")
    ]


def test_what_only_a_store_assigns_is_read_over_in_a_users_manifest() -> None:
    (resource,) = manifest.parse_documents((HERE / "accept" / "kubernetes-list-as-exported.json").read_text())
    assert (resource.meta.uid, resource.meta.version, resource.meta.generation) == ("", 0, 1)
    assert isinstance(resource, Task)
    assert resource == dataclasses.replace(resource, status=type(resource.status)())
    assert resource.spec.inputs == ("😀",)


def test_inputs_keep_their_text() -> None:
    (resource,) = manifest.parse_documents((HERE / "accept" / "task-any-scalar-input.yaml").read_text())
    assert isinstance(resource, Task)
    assert resource.spec.inputs == (
        "10",
        "-1",
        "1.5",
        "true",
        "007",
        "18446744073709551616",
        "text",
        "9223372036854775807",
        "",
    )
