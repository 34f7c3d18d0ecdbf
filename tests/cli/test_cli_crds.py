"""``proplet crds`` prints the definitions that are installed with it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from proplet.agent.cli_parser import CRD_GROUPS
from proplet.manager.crd import definition
from proplet.manager.manifest import GROUPS
from proplet.manager.model import Kind
from tests.cli.command import proplet_now


def test_the_groups_are_the_managers() -> None:
    assert [f"propeller.propeller.{group}" for group in CRD_GROUPS[:-1]] == list(GROUPS)


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [([], GROUPS[:1]), (["--group", "absmach.eu"], GROUPS[1:]), (["--group", "all"], GROUPS)],
)
def test_they_are_printed_as_one_text_for_kubectl(home: Path, arguments: list[str], groups: tuple[str, ...]) -> None:
    code, out, err = proplet_now(home, ["crds", *arguments])
    assert (code, err) == (0, "")
    kinds = sorted(Kind, key=lambda kind: kind.value)
    assert list(yaml.safe_load_all(out)) == [definition(kind, group) for group in groups for kind in kinds]


def test_another_group_is_wrong_usage(home: Path) -> None:
    code, out, err = proplet_now(home, ["crds", "--group", "example.com"])
    assert (code, out) == (2, "")
    assert "'abstractmachines.fr', 'absmach.eu', 'all'" in err


def test_nothing_slow_is_loaded_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "proplet.agent", "crds"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"\|\s*([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in loaded
    assert loaded & {"yaml", "asyncio", "anyio", "wasmtime", "rich", "http.client", "proplet.manager"} == set()
