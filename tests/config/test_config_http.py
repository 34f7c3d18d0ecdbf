"""What serves HTTP and the host runtime, as configured: by the file, and by the reference's variables."""

from pathlib import Path

import pytest

from proplet.agent.config import ConfigError, read
from proplet.agent.parts import program_settings
from proplet.agent.program_ports import Allowed
from proplet.agent.program_settings import ProgramSettings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(home: Path, text: str = "", **environ: str) -> ProgramSettings:
    file = home / "proplet.toml"
    file.write_text(f"[broker]\n{text}")
    return program_settings(read(file, {"HOME": str(home), **environ}).settings)


def test_by_default_services_are_for_this_machine_and_workers_run_the_rest(home: Path) -> None:
    given = settings(home)
    assert given.allowed == Allowed("127.0.0.1", 8222, 8321, 1024)
    assert (given.program, given.runs_all, given.serves) == (None, False, True)
    assert given.cache_dir == home / ".cache/proplet/program"


def test_a_node_opens_itself_to_its_network_by_its_address(home: Path) -> None:
    given = settings(home, '[runtime.http]\nhost = "0.0.0.0"\nfirst_port = 9000\nrequest_timeout = "5s"\n')
    assert given.allowed == Allowed("0.0.0.0", 9000, 9099, 1024)
    assert given.terms.request_timeout_s == 5


def test_the_references_variables_mean_the_same_here(home: Path) -> None:
    given = settings(
        home, PROPLET_EXTERNAL_WASM_RUNTIME="wasmtime", PROPLET_HTTP_PROXY_PORT="65500", PROPLET_HTTP_ENABLED="false"
    )
    assert (given.program, given.runs_all, given.serves) == ("wasmtime", True, False)
    assert (given.allowed.first, given.allowed.last) == (65500, 65535)


def test_the_program_for_services_does_not_make_it_run_everything(home: Path) -> None:
    given = settings(home, '[runtime]\nprogram = "/opt/wasmtime"\n')
    assert (given.program, given.runs_all) == ("/opt/wasmtime", False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('host = "everywhere"', 'runtime.http.host.*"everywhere" is no IP address'),
        ("first_port = 9000\nlast_port = 8000", "runtime.http.last_port.*is below first_port, 9000"),
        ("first_port = 0", "runtime.http.first_port"),
    ],
)
def test_what_does_not_fit_is_said(home: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        settings(home, f"[runtime.http]\n{text}\n")
