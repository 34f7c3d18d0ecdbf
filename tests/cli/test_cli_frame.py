"""The command without a node: help, usage, completion, versions, configuration, and what it loads."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, environment, proplet_now

HEAVY = {
    "aiomqtt", "amqtt", "anyio", "asyncio", "cbor2", "http.client", "oras", "psutil", "requests", "rich",
    "shtab", "sqlite3", "starlette", "tomllib", "uvicorn", "wasmtime", "yaml",
}  # fmt: skip


def test_help_loads_nothing_that_is_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "proplet.agent", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"\|\s*([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in loaded
    assert loaded & HEAVY == set()


def test_help_documents_the_exit_codes_and_every_command(home: Path) -> None:
    code, out, err = proplet_now(home, ["--help"])
    assert (code, err) == (0, "")
    commands = "up demo run crds apply get describe delete start stop logs wait version completion config service"
    for word in commands.split():
        assert f"    {word}" in out
    assert "3 no node reachable" in out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["service", "install", "--help"]])
def test_help_ends_well(home: Path, arguments: list[str]) -> None:
    assert proplet_now(home, arguments).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "the following arguments are required: KIND\n"),
        (["run"], "the following arguments are required: MODULE|IMAGE\n"),
        (["gte", "tasks"], "there is no command `gte`; did you mean `get`?\n"),
        (["config", "chek"], "there is no command `chek`; did you mean `check`?\n"),
        (
            ["run", "--tiemout", "1s", "x.wasm"],
            "there is no flag `--tiemout`; did you mean `--timeout`?\ntry: proplet run --help",
        ),
        (
            ["get", "tasks", "--outptu=json"],
            "there is no flag `--outptu`; did you mean `--output`?\ntry: proplet get --help",
        ),
        (["--verbose", "get", "tasks"], "there is no flag `--verbose`\ntry: proplet --help"),
        (["run", "adition"], "adition: no such file here; an image has its registry in front"),
        (["get", "tsks"], "there is no kind `tsks`; did you mean `tasks`?"),
        (["get", "tasks", "-o", "xml"], "invalid choice: 'xml'"),
        (["run", "x.wat"], "is WebAssembly as text"),
        (["run", "--env", "x", "x.wasm"], "x.wasm: No such file"),
        (["run", "https://127.0.0.1:1/x.wasm"], "allow the host in modules.local_url_hosts"),
        (["image", "inspect", "https://127.0.0.1:1/x.wasm"], "allow the host in modules.local_url_hosts"),
        (["get", "tasks", "--server", "ftp://x"], "a node's address is unix:/path or http(s)://host:port"),
        (["apply"], "required: -f/--filename"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_is_wrong(home: Path, arguments: list[str], message: str) -> None:
    code, out, err = proplet_now(home, arguments)
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_without_a_command_help_is_shown_and_the_usage_is_wrong(home: Path) -> None:
    code, out, err = proplet_now(home, [])
    assert (code, out) == (2, "")
    assert "usage: proplet" in err


@pytest.mark.parametrize(
    "arguments",
    [["get", "tasks"], ["apply", "-f", "-"], ["logs", "x"], ["wait", "x"], ["describe", "task", "x"], ["stop", "x"]],
)
def test_without_a_node_every_command_says_how_to_start_one(home: Path, arguments: list[str]) -> None:
    code, out, err = proplet_now(home, arguments)
    assert (code, out) == (3, "")
    assert err.startswith("proplet: error: no node runs here")
    assert "start one with `proplet up`" in err


def test_an_empty_variable_names_no_node(home: Path) -> None:
    code, _, err = proplet_now(home, ["get", "tasks"], PROPLET_SOCKET="")
    assert (code, "no node runs here" in err) == (3, True)


def test_a_url_where_nobody_listens_is_one_plain_line(home: Path) -> None:
    code, out, err = proplet_now(home, ["get", "tasks", "-s", "http://127.0.0.1:9"])
    assert (code, out) == (3, "")
    assert "http://127.0.0.1:9 does not answer: Connection refused; is the node up" in err


def test_version_needs_no_node(home: Path) -> None:
    code, out, err = proplet_now(home, ["version"])
    assert (code, out, err) == (0, f"proplet {importlib.metadata.version('proplet')}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_scripts_name_the_commands(home: Path, shell: str) -> None:
    code, out, err = proplet_now(home, ["completion", shell])
    assert (code, err) == (0, "")
    assert all(word in out for word in ("describe", "mqtt", "token", "service"))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True, capture_output=True)


def test_bash_completes_commands_and_flags(home: Path) -> None:
    script = proplet_now(home, ["completion", "bash"]).out
    ask = f"{script}\nCOMP_WORDS=(proplet de) COMP_CWORD=1; _shtab_proplet proplet de proplet; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"demo", "describe", "delete"}


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [COMMAND, "completion", "bash"], stdout=writing, stderr=subprocess.PIPE, env=environment(home), check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_one_line(home: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [COMMAND, "version"], stdout=full, stderr=subprocess.PIPE, env=environment(home), check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"proplet: error: the output cannot be written: No space left on device\n",
    )


def test_closed_output_is_nobody_listening(home: Path) -> None:
    shell = ["sh", "-c", f"{COMMAND} version >&-"]
    done = subprocess.run(shell, stderr=subprocess.PIPE, env=environment(home), check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_a_character_gets_another(home: Path) -> None:
    path = home / "ü.toml"
    path.write_text("[mqtt]\nqos = 7\n")
    done = proplet_now(home, ["config", "check", "--config", path], PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.code == 78
    assert "/?" in done.err
    assert "Traceback" not in done.err


def test_bash_completes_kinds_and_files(home: Path) -> None:
    script = proplet_now(home, ["completion", "bash"]).out
    (home / "task.yaml").touch()
    for words, wanted in (("get t", "tasks"), ("apply -f ta", "task.yaml"), ("run ta", "task.yaml")):
        last = words.split()[-1]
        ask = (
            f"{script}\nCOMP_WORDS=(proplet {words}) COMP_CWORD={len(words.split())}; "
            f"_shtab_proplet proplet {last} {words.split()[-2]}; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=home)
        assert done.stdout.split() == [wanted], words


# --- configuration -----------------------------------------------------------------------------------------------


def test_config_check_says_what_the_node_would_be(home: Path) -> None:
    code, out, err = proplet_now(home, ["config", "check"], PROPLET_NODE_ID="pi-1")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "ok: pi-1: agent, broker, manager; MQTT at its own broker; no configuration file",
        "tasks may ask for: nothing of this machine ([agent.permissions] has no entries)",
    ]


def test_config_check_says_what_tasks_may_ask_for_and_what_that_means(home: Path) -> None:
    path = home / "p.toml"
    path.write_text('[broker]\n[agent.permissions]\nhttp = ["*"]\n[[agent.permissions.dirs]]\nhost = "/srv/data"\n')
    code, out, err = proplet_now(home, ["config", "check", "--config", path])
    assert (code, err) == (0, "")
    assert "tasks may ask for: /srv/data (reading), outbound HTTP; the engine cannot hold a guest to hosts" in out


def test_config_check_lists_every_problem_and_ends_with_78(home: Path) -> None:
    path = home / "p.toml"
    path.write_text("[mqtt]\nqos = 7\n[brokr]\nport = 1\n[managr]\n")
    code, out, err = proplet_now(home, ["config", "check", "--config", path])
    assert (code, out) == (78, "")
    assert err.splitlines() == [
        f"{path}:2: mqtt.qos: must be at most 2",
        f"{path}:4: unknown table `brokr` at the top level; did you mean `broker`?",
        f"{path}:5: unknown table `managr` at the top level; did you mean `manager`?",
        "proplet: error: the configuration has 3 problems",
    ]


def test_config_show_prints_origins_and_no_secret(home: Path) -> None:
    (home / ".config/proplet").mkdir(parents=True)
    path = home / ".config/proplet/proplet.toml"
    path.write_text("[broker]\nport = 0\n")
    code, out, err = proplet_now(home, ["config", "show"], PROPLET_CLIENT_KEY="s3cret", PROPLET_LOG_LEVEL="debug")
    assert (code, err) == (0, "")
    assert re.search(rf"^port = 0 +# {re.escape(str(path))}:2$", out, re.MULTILINE)
    assert re.search(r'^log_level = "debug" +# PROPLET_LOG_LEVEL$', out, re.MULTILINE)
    assert re.search(r'^client_key = "<redacted>" +# PROPLET_CLIENT_KEY$', out, re.MULTILINE)
    assert "s3cret" not in out


def test_up_with_a_wrong_configuration_ends_with_78(home: Path) -> None:
    code, out, err = proplet_now(home, ["up", "--mqtt-address", "nonsense://x"])
    assert (code, out) == (78, "")
    assert "proplet: error: --mqtt-address: mqtt.address: MQTT address 'nonsense://x': unknown scheme" in err
    assert "mqtt.domain: is missing" in err


def test_a_traceback_is_shown_only_when_asked_for(home: Path) -> None:
    code, _, err = proplet_now(home, ["config", "show", "--config", "/nowhere.toml"])
    assert (code, "Traceback" in err) == (78, False)
    code, _, err = proplet_now(home, ["config", "show", "--config", "/nowhere.toml"], PROPLET_DEBUG="1")
    assert (code, "Traceback" in err) == (78, True)


AS_NOBODY = """
import os, sys
import proplet.agent.cli_node, proplet.agent.cli_parser, proplet.agent.unit  # now: later they may be out of reach
from proplet.agent import cli
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.argv = ["proplet", "service", "install"]
sys.exit(cli.main())
"""


def test_the_service_is_not_touched_by_who_is_not_root(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], env=environment(home), cwd="/", capture_output=True, text=True, check=False
    )
    assert (done.returncode, "only root" in done.stderr) == (1, True), done.stderr
