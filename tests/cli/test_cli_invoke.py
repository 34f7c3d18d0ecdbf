"""``proplet invoke`` against a node's API over its socket."""

from pathlib import Path

import pytest

from tests.api.fakes import Node
from tests.cli.command import proplet
from tests.cli.test_cli_resources import manifest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def function(node: Node, home: Path) -> str:
    text = manifest("f", "plain").replace(b"{name: f,", b"{name: f, latent: true,")
    assert (await proplet(home, "apply", "-f", "-", stdin=text)).code == 0
    return "f"


async def test_the_result_is_printed_alone(function: str, home: Path) -> None:
    assert await proplet(home, "invoke", function, "1", "-2", "--env", "A=x=y") == (0, "1 -2 {'A': 'x=y'}\n", "")


async def test_a_failure_is_one_line_and_an_exit_code(function: str, home: Path) -> None:
    assert await proplet(home, "invoke", function, "trap") == (134, "", "proplet: error: it trapped\n")
    slow = await proplet(home, "invoke", "--timeout", "2s", function, "silence")
    assert (slow.code, slow.out) == (5, "")
    assert "did not answer within 2 s" in slow.err
    refused = await proplet(home, "invoke", "plain")
    assert (refused.code, refused.out) == (1, "")
    assert "is not latent" in refused.err
    assert (await proplet(home, "invoke", "nothing")).code == 4


@pytest.mark.parametrize("arguments", [("--timeout", "1m", "f"), ("--timeout", "x", "f"), ("--env", "A", "f"), ()])
async def test_wrong_usage_is_told(arguments: tuple[str, ...], node: Node, home: Path) -> None:
    done = await proplet(home, "invoke", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("proplet: error: ")
