"""The ``[kubernetes]`` table: what it switches on, what is refused, and how patient a manager is."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from proplet.agent.config import ConfigError, load, read
from proplet.agent.config_show import show


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's own directories may be too long for a socket's path.
    with tempfile.TemporaryDirectory(prefix="p-") as directory:
        monkeypatch.chdir(directory)
        yield Path(directory)


def environ(home: Path, **more: str) -> Mapping[str, str]:
    return {"HOME": str(home), **more}


def problems(path: Path, env: Mapping[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, env)
    return str(caught.value)


def test_a_kubernetes_table_makes_a_manager_whose_resources_are_a_clusters(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "proplet.toml"
    file.write_text("[broker]\n[kubernetes]\nnamespaces = ['edge']\nlast_seen_interval = '1m'\n")
    settings = load(file, environ(home))
    assert settings.manager is not None
    assert settings.kubernetes is not None
    assert settings.kubernetes.namespaces == ("edge",)
    assert settings.kubernetes.last_seen_interval_s == 60
    assert load(None, environ(home)).kubernetes is None
    assert load(None, environ(home, PROPLET_KUBERNETES="true", PROPLET_BROKER="true")).kubernetes is not None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("namespaces = ['No']", ':3: kubernetes.namespaces: "No" is no namespace'),
        ("group = 'a..b'", ':3: kubernetes.group: "a..b" is no API group'),
        ("health_address = '8081'", ':3: kubernetes.health_address: "8081" is no address to listen on'),
        ("metrics_address = ':65536'", ':3: kubernetes.metrics_address: ":65536" is no address'),
        ("kubeconfig = '/no/where'", ":3: kubernetes.kubeconfig: /no/where cannot be read"),
        ("metrics_cert_file = '/dev/null'", "kubernetes.metrics_key_file"),
        ("lease_duration = '12.5s'", ":3: kubernetes.lease_duration: must be whole seconds"),
        ("lease_duration = '9s'", "kubernetes.renew_deadline: 10 s is not less than kubernetes.lease_duration, 9 s"),
        (
            "renew_deadline = '15s'",
            ":3: kubernetes.renew_deadline: 15 s is not less than kubernetes.lease_duration, 15 s",
        ),
        ("retry_period = '10s'", ":3: kubernetes.retry_period: 10 s is not less than kubernetes.renew_deadline, 10 s"),
        ("renew_deadline = 0", "kubernetes.retry_period: 2 s is not less than kubernetes.renew_deadline, 0 s"),
        (
            "api_server_timeout = '20s'",
            ":3: kubernetes.api_server_timeout: 20 s is not less than kubernetes.refused_hold",
        ),
    ],
)
def test_what_is_wrong_with_a_kubernetes_table_is_said(home: Path, tmp_path: Path, table: str, said: str) -> None:
    file = tmp_path / "proplet.toml"
    file.write_text(f"[broker]\n[kubernetes]\n{table}\n")
    assert said in problems(file, environ(home))


def test_a_manager_is_told_how_patient_to_be_in_kubernetes_words(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "proplet.toml"
    file.write_text("[broker]\n[kubernetes]\napi_server_timeout = '5s'\nrefused_hold = '1m'\n")
    flags = {"kubernetes.lease_duration": "1m0s", "kubernetes.renew_deadline": "40s", "kubernetes.retry_period": "5s"}
    loaded = read(file, environ(home), flags)
    shown = "\n".join(" ".join(line.split()) for line in show(loaded.settings, loaded.origins))
    assert 'lease_duration = "1m" # --leader-elect-lease-duration' in shown
    assert 'renew_deadline = "40s" # --leader-elect-renew-deadline' in shown
    assert 'retry_period = "5s" # --leader-elect-retry-period' in shown
    assert f'api_server_timeout = "5s" # {file}:3' in shown
    assert f'refused_hold = "1m" # {file}:4' in shown


def test_a_kubernetes_table_without_a_manager_is_a_mistake(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "proplet.toml"
    file.write_text("[broker]\n[kubernetes]\n")
    assert "is about the manager, which is off here" in problems(file, environ(home, PROPLET_MANAGER="false"))
