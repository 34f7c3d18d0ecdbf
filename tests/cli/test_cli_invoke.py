"""``proplet run`` of components: as commands, and their exported functions called as `wasmtime run --invoke` does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proplet.agent.cli import CliError
from proplet.agent.cli_exports import split_call
from tests.cli.command import Done, proplet_now
from tests.support.modules import DIRECTORY


def run(home: Path, module: str, *arguments: str, options: tuple[str, ...] = ()) -> Done:
    return proplet_now(home, ["run", "-q", *options, str(DIRECTORY / f"{module}.wasm"), *arguments])


def test_a_function_of_a_component_is_called_in_both_forms(home: Path) -> None:
    assert run(home, "component_exports", options=("--invoke", "add(40, 2)")) == (0, "42\n", "")
    assert run(home, "component_exports", "40", "2", options=("--invoke", "add")) == (0, "42\n", "")
    name = "demo:numbers/math#sum"
    assert run(home, "component_exports", options=("--invoke", f"{name}(1, 2)")).out == "3\n"


def test_a_core_modules_function_may_be_called_with_its_arguments_in_parentheses(home: Path) -> None:
    assert run(home, "addition", options=("--invoke", "main(40, 2)")) == (0, "42\n", "")


@pytest.mark.parametrize(
    ("invoke", "arguments", "code", "message"),
    [
        ("ad(1, 2)", (), 1, "the component exports no function `ad`; did you mean `add`?; it exports add, "),
        ("add(1, 2)", ("3",), 2, "it has its arguments, 3 is one too many"),
        ("add(1, 2", (), 2, "the parentheses do not match"),
        ("add(1, -2)", (), 1, "expected a u32"),
        ("unreachable()", (), 134, "unreachable"),
    ],
)
def test_a_call_that_cannot_be_made_is_told(
    home: Path, invoke: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = run(home, "component_exports", *arguments, options=("--invoke", invoke))
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_component_that_is_a_command_runs_without_a_name(home: Path) -> None:
    assert run(home, "component_command", "both") == (0, "to stdout", "to stderr")
    assert run(home, "component_command", "exit", "3").code == 1
    done = run(home, "component_command", "arguments", "--dir", "x")
    assert done.out == '["component_command.wasm", "arguments", "--dir", "x"]\n'
    refused = run(home, "component_exports")
    assert (refused.code, "'component_exports.wasm' not found in component" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("f()", "f", []),
        (" f ( 1 , 2 ) ", "f", ["1", "2"]),
        ("a:b/c@1.0.0#f([1, 2], {a: (1, 2)},)", "a:b/c@1.0.0#f", ["[1, 2]", "{a: (1, 2)}"]),
        ('f("a, (b", \',\', "\\"", 1)', "f", ['"a, (b"', "','", '"\\""', "1"]),
        ('f("""\n"a", (\n""", 2)', "f", ['"""\n"a", (\n"""', "2"]),
        ("f(1, // a comment, (\n 2)", "f", ["1", "// a comment, (\n 2"]),
    ],
)
def test_a_call_is_split_where_its_arguments_end(text: str, name: str, arguments: list[str]) -> None:
    assert split_call(text) == (name, arguments)


@given(text=st.text(alphabet="f(),[]{}\"'\\/ \n1", max_size=40))
def test_any_text_is_a_call_or_refused(text: str) -> None:
    try:
        name, arguments = split_call(text)
    except CliError:
        return
    assert "(" not in name
    assert all(argument == argument.strip() for argument in arguments)
