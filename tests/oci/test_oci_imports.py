"""Who imports what: one adapter for each library, and nothing of the packages above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import proplet.oci

HOME = {
    "oras": {"connection", "login"},
    # connection, login, registry and upload: for types only
    "requests": {"transport", "faults", "web", "connection", "login", "registry", "upload"},
    "urllib3": {"transport", "faults"},
    "proplet.agent": set(),
    "proplet.manager": set(),
}


def imports() -> Iterator[tuple[str, str]]:
    for file in Path(next(iter(proplet.oci.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file.stem, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield file.stem, str(node.module)


@pytest.mark.parametrize("library", HOME)
def test_a_library_is_imported_only_by_its_adapter(library: str) -> None:
    users = {module for module, name in imports() if name == library or name.startswith(f"{library}.")}
    assert users == HOME[library]
